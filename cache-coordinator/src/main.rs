//! Parse, build, run, exit code.

use std::process::ExitCode;

use cache_coordinator::{
    app::App,
    cli,
    config::{self, ServeConfig},
};
use clap::ArgMatches;
use service_kit::{
    config::EXIT_USAGE,
    health::{self, Listener},
    shutdown::token_on_signal,
    telemetry::{self, TelemetryOptions},
};

/// Where `/livez` is.
const HEALTH: Listener = Listener {
    address_option: "http-listen",
    tls_option: Some("tls-cert"),
};

fn main() -> ExitCode {
    let whole = cli::command()
        .subcommand(config::serve_command())
        .subcommand(health::command(&config::table()));
    let arguments = cli::shared_names::resolve(std::env::args_os());
    let matches = whole.clone().get_matches_from(arguments);
    match matches.subcommand() {
        Some(("serve", arguments)) => serve(arguments),
        Some(("health", arguments)) => health::run(&config::table(), arguments, HEALTH),
        _ => cli::run(&whole, &matches),
    }
}

fn serve(arguments: &ArgMatches) -> ExitCode {
    let settings = match config::table().load(arguments, config::check) {
        Ok(settings) => settings,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("can not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let telemetry = TelemetryOptions::from_settings(&settings);
    match runtime.block_on(run(ServeConfig::from_settings(&settings), telemetry)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cache-coordinator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: ServeConfig, options: TelemetryOptions) -> anyhow::Result<()> {
    let instance = config.listen.to_string();
    let telemetry = telemetry::init("cache-coordinator", &instance, &options)?;
    let shutdown = token_on_signal()?;
    let result = match App::bind(config, shutdown).await {
        Ok(app) => app.run().await,
        Err(error) => Err(error),
    };
    telemetry.shutdown().await;
    result
}
