//! Runs the fault campaign and prints its table:
//! `chunkcache-faults [--full | --only KIND=COUNT,...] [--seed N] [--minutes M]`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use chunkcache_tests::campaign::{Plan, network, run};

fn main() -> ExitCode {
    if let Some(mut again) = network::in_own_namespace() {
        let status = again.args(std::env::args_os().skip(1)).status();
        let code = status.ok().and_then(|it| it.code()).unwrap_or(1);
        return ExitCode::from(u8::try_from(code).unwrap_or(1));
    }
    let mut arguments = std::env::args().skip(1);
    let (mut full, mut seed, mut minutes) = (false, 1, 0);
    let mut only: Option<Vec<(String, u32)>> = None;
    while let Some(argument) = arguments.next() {
        if argument == "--only" {
            let kinds = arguments.next().unwrap_or_default();
            let pair = |it: &str| {
                let (kind, count) = it.split_once('=')?;
                let count = count.parse().ok()?;
                Plan::quiet(0)
                    .set(kind, count)
                    .then(|| (kind.to_owned(), count))
            };
            only = kinds.split(',').map(pair).collect();
            if only.is_none() {
                return usage("--only wants KIND=COUNT,...");
            }
            continue;
        }
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
        let mut plan = match (&only, full) {
            (Some(_), _) => Plan::quiet(seed),
            (None, true) => Plan::full(seed),
            (None, false) => Plan::short(seed),
        };
        for (kind, count) in only.iter().flatten() {
            plan.set(kind, *count);
        }
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
    eprintln!(
        "{wrong}\nusage: chunkcache-faults [--full | --only KIND=COUNT,...] [--seed N] [--minutes \
         M]"
    );
    ExitCode::from(2)
}
