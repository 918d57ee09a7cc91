//! Runs the fault campaign and prints its table: `chunkcache-faults [--full] [--seed N] [--minutes M]`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use chunkcache_tests::campaign::{Plan, run};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut full, mut seed, mut minutes) = (false, 1, 0);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|it| it.parse().ok());
        match (argument.as_str(), ()) {
            ("--full", ()) => full = true,
            ("--seed", ()) => match number() {
                Some(value) => seed = value,
                None => return usage("--seed wants a number"),
            },
            ("--minutes", ()) => match number() {
                Some(value) => minutes = value,
                None => return usage("--minutes wants a number"),
            },
            (other, ()) => return usage(&format!("{other}: no such option")),
        }
    }
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    loop {
        let plan = if full {
            Plan::full(seed)
        } else {
            Plan::short(seed)
        };
        let report = run(&plan);
        println!("{report}");
        if let Err(wrong) = report.verdict() {
            eprintln!("seed {seed}: {wrong}");
            return ExitCode::FAILURE;
        }
        seed += 1;
        if Instant::now() >= until {
            return ExitCode::SUCCESS;
        }
    }
}

fn usage(wrong: &str) -> ExitCode {
    eprintln!("{wrong}\nusage: chunkcache-faults [--full] [--seed N] [--minutes M]");
    ExitCode::from(2)
}
