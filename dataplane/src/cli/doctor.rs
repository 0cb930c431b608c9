//! `millrace doctor`: looks at the machine, the configuration and the models, and says what to do.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::SettingFlags;
use super::doctor_checks as checks;
use super::print::{Tone, out, painted};
use crate::config::{self, Loaded};
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    settings: SettingFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Status {
    /// Nothing to do.
    Ok,
    /// Works, but worse than it could.
    Warning,
    /// The server will not start, or will lose its promises.
    Failure,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "failure",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// Stable name for scripts.
    pub(super) check: &'static str,
    pub(super) status: Status,
    /// What was found.
    pub(super) what: String,
    /// Why it matters.
    pub(super) why: &'static str,
    /// The command that improves it.
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn ok(check: &'static str, what: impl Into<String>, why: &'static str) -> Self {
        Self { check, status: Status::Ok, what: what.into(), why, fix: None }
    }

    pub(super) fn warning(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        fix: impl Into<String>,
    ) -> Self {
        Self { check, status: Status::Warning, what: what.into(), why, fix: Some(fix.into()) }
    }

    pub(super) fn failure(
        check: &'static str,
        what: impl Into<String>,
        why: &'static str,
        fix: impl Into<String>,
    ) -> Self {
        Self { check, status: Status::Failure, what: what.into(), why, fix: Some(fix.into()) }
    }
}

pub(super) fn run(args: &DoctorArgs) -> Result<ExitCode, Trouble> {
    let findings = match config::load(&args.settings.flags) {
        Ok(loaded) => examine(&loaded),
        Err(trouble) => {
            let what = format!("{}: {}", trouble.what, trouble.why);
            vec![Finding::failure("configuration", what, "the server refuses to start with it", trouble.next)]
        }
    };
    let worst = findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
    out(&if args.json { document(&findings, worst) } else { report(&findings, worst) });
    Ok(ExitCode::from(match worst {
        Status::Ok => 0,
        Status::Warning => 1,
        Status::Failure => 2,
    }))
}

fn examine(loaded: &Loaded) -> Vec<Finding> {
    let config = &loaded.config;
    let file = loaded.file.as_deref().map_or("no file".to_owned(), |path| path.display().to_string());
    let channels = config.channels.len();
    let what = format!("{file}, {channels} channel account(s)");
    let mut findings = vec![Finding::ok("configuration", what, "every key and value was checked")];
    findings.push(checks::kernel());
    findings.push(checks::io_uring(config.io));
    findings.push(checks::memlock());
    findings.push(checks::open_files(config));
    findings.push(checks::cpu_set(config));
    findings.push(checks::cpu_instructions());
    findings.extend(checks::models(config));
    findings.push(checks::memory_plan(config));
    findings.extend(checks::ports(config));
    findings.push(checks::exposure(config));
    findings.extend(checks::certificate(config));
    findings.extend(checks::disk(config));
    findings
}

fn document(findings: &[Finding], worst: Status) -> String {
    let rows: Vec<Value> = findings
        .iter()
        .map(|finding| {
            json!({
                "check": finding.check,
                "status": finding.status.as_str(),
                "what": finding.what,
                "why": finding.why,
                "fix": finding.fix,
            })
        })
        .collect();
    format!("{}\n", json!({"status": worst.as_str(), "findings": rows}))
}

fn report(findings: &[Finding], worst: Status) -> String {
    let mut text = String::new();
    for finding in findings {
        let (word, tone) = match finding.status {
            Status::Ok => ("ok     ", Tone::Good),
            Status::Warning => ("warning", Tone::Warning),
            Status::Failure => ("failure", Tone::Bad),
        };
        text.push_str(&format!("{}  {}: {}\n", painted(word, tone), finding.check, finding.what));
        if finding.status != Status::Ok {
            text.push_str(&format!("         why: {}\n", finding.why));
        }
        if let Some(fix) = &finding.fix {
            text.push_str(&format!("         fix: {}\n", painted(fix, Tone::Strong)));
        }
    }
    let summary = match worst {
        Status::Ok => "healthy",
        Status::Warning => "works, with warnings",
        Status::Failure => "the server will not run well like this",
    };
    text.push_str(&painted(&format!("{summary}\n"), Tone::Quiet));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_decides_and_every_trouble_names_its_fix() {
        let findings = vec![Finding::ok("a", "fine", "w"), Finding::warning("b", "so so", "because", "do this")];
        let worst = findings.iter().map(|finding| finding.status).max().unwrap();
        let json: Value = serde_json::from_str(&document(&findings, worst)).unwrap();
        assert_eq!(json["status"], "warning");
        assert_eq!(json["findings"][1]["fix"], "do this");
        let text = report(&findings, worst);
        assert!(text.contains("why: because") && text.contains("fix: do this"), "{text}");
    }
}
