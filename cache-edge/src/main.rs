//! Parse, build, run, exit code.

use std::process::ExitCode;

use cache_edge::{
    app, import,
    options::{self, Options},
    sign,
};
use clap::Command;
use service_kit::{
    config::EXIT_USAGE,
    health::{self, Listener},
    shell,
    telemetry::{self, TelemetryOptions},
    tls,
};

/// Where `/livez` is.
const HEALTH: Listener = Listener {
    address_option: "admin-listen",
    tls_option: Some("admin-tls-cert"),
};

fn main() -> ExitCode {
    let table = options::table();
    let serve = table.add_to(
        Command::new("serve")
            .about("Serve players from the cache, filling it from origins and peers"),
    );
    let command = Command::new("cache-edge")
        .version(env!("CARGO_PKG_VERSION"))
        .about("An edge of the chunk cache")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            serve,
            health::command(&table),
            sign::command(),
            import::command(&table),
        ])
        .subcommands(shell::commands());
    let matches = command.clone().get_matches();
    let arguments = match matches.subcommand() {
        Some(("serve", arguments)) => arguments,
        Some(("health", arguments)) => return health::run(&table, arguments, HEALTH),
        Some(("import", arguments)) => return import::run(&table, arguments),
        Some(("sign", arguments)) => return sign::run(arguments),
        Some((verb @ ("completions" | "man"), arguments)) => {
            return shell::run(&command, verb, arguments);
        }
        _ => return ExitCode::from(EXIT_USAGE),
    };
    let settings = match table.load(arguments, options::check) {
        Ok(settings) => settings,
        Err(problems) => {
            eprintln!("{problems}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let (options, telemetry) = (
        Options::from_settings(&settings),
        TelemetryOptions::from_settings(&settings),
    );
    match run(options, &telemetry) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cache-edge: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options, telemetry: &TelemetryOptions) -> anyhow::Result<()> {
    tls::install_provider();
    let fetch = app::fetch_threads(options.max_downloads)?;
    // The session with the coordinator, the plan, upkeep: many short turns that wake each other. On
    // one thread no turn costs a switch to another.
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control-disk")
        .build()?;
    let result = control.block_on(async {
        let telemetry = telemetry::init("cache-edge", &options.name, telemetry)?;
        let result = app::serve(options, fetch.workers().clone()).await;
        telemetry.shutdown().await;
        result
    });
    // Fetches that were cut are resumed from what is durable; nothing here is worth waiting for.
    drop(fetch);
    control.shutdown_background();
    result
}
