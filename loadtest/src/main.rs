//! The command line of `millrace-load`.
//!
//! Exit codes: 0 all well, 1 a requirement was not met, 2 wrong usage or no server, 3 the report is invalid.

use clap::Parser;
use millrace_loadtest::{Options, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    match work(&options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("millrace-load: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn work(options: &Options) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run(options))?;
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        if path.as_os_str() == "-" {
            print!("{text}");
        } else {
            std::fs::write(path, text)
                .map_err(|error| anyhow::anyhow!("cannot write the report to {}: {error}", path.display()))?;
        }
    }
    if options.json.as_ref().is_none_or(|path| path.as_os_str() != "-") {
        print!("{report}");
    }
    Ok(ExitCode::from(match (report.valid, report.requirements_met()) {
        (false, _) => 3,
        (true, false) => 1,
        (true, true) => 0,
    }))
}
