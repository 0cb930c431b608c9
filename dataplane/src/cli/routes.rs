//! `millrace routes`: everything that the public port answers, and who may call it.

use std::process::ExitCode;

use clap::Args;
use millrace_proto::record::scope_names;
use serde_json::json;

use super::print::{out, table};
use crate::gateway::routes::{Access, ROUTES};

#[derive(Debug, Args)]
pub(super) struct RoutesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &RoutesArgs) -> ExitCode {
    let rows: Vec<_> =
        ROUTES.iter().map(|row| (row.verb.as_str(), row.path, kind(row.access), scopes(row.access))).collect();
    if args.json {
        let of = |(method, path, access, scopes): &(&str, &str, &str, Vec<&str>)| json!({"method": method, "path": path, "access": access, "scopes": scopes});
        out(&format!("{}\n", json!(rows.iter().map(of).collect::<Vec<_>>())));
    } else {
        let of = |(method, path, access, scopes): &(&str, &str, &str, Vec<&str>)| {
            vec![(*method).to_owned(), (*path).to_owned(), (*access).to_owned(), scopes.join(" or ")]
        };
        out(&table(&["METHOD", "PATH", "ACCESS", "SCOPES"], &rows.iter().map(of).collect::<Vec<_>>()));
    }
    ExitCode::SUCCESS
}

fn kind(access: Access) -> &'static str {
    match access {
        Access::Public => "public",
        Access::Key(_) => "key",
        Access::Client => "client",
        Access::Signed => "signed",
        Access::FirstFrame => "first frame",
    }
}

fn scopes(access: Access) -> Vec<&'static str> {
    if let Access::Key(scopes) = access { scope_names(scopes) } else { Vec::new() }
}
