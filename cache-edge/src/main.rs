//! Parses, builds, runs, and returns the exit code.

use std::process::ExitCode;

use cache_edge::{app, import, options::Options, sign};
use clap::Command;
use service_kit::{
    config::{self, EXIT_USAGE},
    health::{self, Listener},
    shell, shutdown, telemetry, tls,
};

/// The listener that answers `/livez`.
const HEALTH: Listener = Listener {
    address: "admin_listen",
    tls_cert: "admin_tls_cert",
};

fn main() -> ExitCode {
    let serve = config::command::<Options>("serve")
        .about("Serve players from the cache, filling it from origins and peers");
    let command = Command::new("cache-edge")
        .version(env!("CARGO_PKG_VERSION"))
        .about("An edge of the chunk cache")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            serve,
            health::command::<Options>(HEALTH),
            sign::command(),
            import::command(),
        ])
        .subcommands(shell::commands());
    let matches = match config::matches::<Options>(&command, std::env::args_os()) {
        Ok(matches) => matches,
        Err(error) => return error.report(),
    };
    let arguments = match matches.subcommand() {
        Some(("serve", arguments)) => arguments,
        Some(("health", arguments)) => return health::run(arguments, HEALTH),
        Some(("import", arguments)) => return import::run(arguments),
        Some(("sign", arguments)) => return sign::run(arguments),
        Some((verb @ ("completions" | "man"), arguments)) => {
            return shell::run(&command, verb, arguments);
        }
        _ => return ExitCode::from(EXIT_USAGE),
    };
    let options = match config::load::<Options>(arguments) {
        Ok(options) => options,
        Err(error) => return error.report(),
    };
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            shutdown::report("cache-edge", &error);
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> anyhow::Result<()> {
    tls::install_provider();
    // The data directory contains credentials of sources, so nobody else may read this process's
    // files.
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let fetch = app::fetch_threads(options.max_downloads as usize)?;
    // The session, the planner and maintenance are many short tasks that wake each other. On one
    // thread, no wake-up switches to another thread.
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("control-disk")
        .build()?;
    let result = control.block_on(async {
        let telemetry = telemetry::init("cache-edge", &options.name, &options.telemetry)?;
        let result = app::serve(options, fetch.workers().clone()).await;
        telemetry.shutdown().await;
        result
    });
    // Aborted fetches resume after their durable bytes, so there is nothing to wait for.
    drop(fetch);
    control.shutdown_background();
    result
}
