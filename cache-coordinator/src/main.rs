//! Parses, builds, runs, and returns the exit code.

use std::process::ExitCode;

use cache_coordinator::{app::App, cli, config::ServeOptions};
use clap::ArgMatches;
use service_kit::{
    config,
    health::{self, Listener},
    open_files,
    shutdown::{self, token_on_signal},
    telemetry,
};

/// The listener that answers `/livez`.
const HEALTH: Listener = Listener {
    address: "http_listen",
    tls_cert: "tls_cert",
};

fn main() -> ExitCode {
    let serve_command = config::command::<ServeOptions>("serve").about(
        "Runs a coordinator; every option is also an environment variable and a key of --config \
         FILE",
    );
    let whole = cli::command()
        .subcommand(serve_command)
        .subcommand(health::command::<ServeOptions>(HEALTH));
    let arguments = cli::shared_names::resolve(std::env::args_os());
    let matches = match config::matches::<ServeOptions>(&whole, arguments) {
        Ok(matches) => matches,
        Err(error) => return error.report(),
    };
    match matches.subcommand() {
        Some(("serve", arguments)) => serve(arguments),
        Some(("health", arguments)) => health::run(arguments, HEALTH),
        _ => cli::run(&whole, &matches),
    }
}

fn serve(arguments: &ArgMatches) -> ExitCode {
    let options = match config::load::<ServeOptions>(arguments) {
        Ok(options) => options,
        Err(error) => return error.report(),
    };
    open_files::raise_limit();
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
    match runtime.block_on(run(options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shutdown::report("cache-coordinator", &error);
            ExitCode::FAILURE
        }
    }
}

async fn run(options: ServeOptions) -> anyhow::Result<()> {
    let instance = options.instance();
    let telemetry = telemetry::init("cache-coordinator", &instance, &options.telemetry)?;
    let shutdown = token_on_signal()?;
    let result = match App::bind(options, shutdown).await {
        Ok(app) => app.run().await,
        Err(error) => Err(error),
    };
    telemetry.shutdown().await;
    result
}
