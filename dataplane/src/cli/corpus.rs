//! `millrace corpus`: documents in, found again, out.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use millrace_proto::document::Kind;
use millrace_proto::limits::DOCUMENT_BYTES_MAX;
use serde_json::Value;

use super::admin::{admin, query, show_list, text};
use super::client::{Client, ServerArgs};
use super::print::{note, out};
use crate::trouble::Trouble;

/// Pause between two looks at a job.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Files of one folder tree.
const FILES_MAX: usize = 100_000;

/// Documents that answers draw on
#[derive(Debug, Args)]
pub(super) struct CorpusArgs {
    #[command(subcommand)]
    command: CorpusCommand,
}

#[derive(Debug, Subcommand)]
enum CorpusCommand {
    /// Take files in: txt, md, html, pdf, docx, xlsx, pptx, csv, eml. What has not changed stays as it is
    Add {
        #[command(flatten)]
        server: ServerArgs,
        /// The corpus; it is made when it is new
        corpus: String,
        /// Files, or folders with files
        #[arg(required = true)]
        paths: Vec<PathBuf>,
        /// File the documents under this word; can be given several times
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
    },
    /// List the corpora, or the documents of one
    Ls {
        #[command(flatten)]
        server: ServerArgs,
        /// The corpus
        corpus: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a document, or a whole corpus
    Rm {
        #[command(flatten)]
        server: ServerArgs,
        /// The corpus
        corpus: String,
        /// The document, as `corpus ls` names it; without it, give --all
        document: Option<String>,
        /// Remove the corpus with all its documents
        #[arg(long, conflicts_with = "document")]
        all: bool,
    },
    /// Show the passages that answer a question, with their file, page and heading
    Search {
        #[command(flatten)]
        server: ServerArgs,
        /// The corpus
        corpus: String,
        /// The question
        question: String,
        /// Most passages
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=50))]
        limit: u64,
        /// Only documents filed under this word; can be given several times
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &CorpusArgs) -> Result<ExitCode, Trouble> {
    match &args.command {
        CorpusCommand::Add { server, corpus, paths, tags } => add(&admin(server)?, corpus, paths, tags),
        CorpusCommand::Ls { server, corpus, json } => {
            ls(&admin(server)?, corpus.as_deref(), *json)?;
            Ok(ExitCode::SUCCESS)
        }
        CorpusCommand::Rm { server, corpus, document, all } => {
            let path = match (document, all) {
                (Some(document), _) => format!("{}/documents?name={}", address(corpus), query(document)),
                (None, true) => address(corpus),
                (None, false) => {
                    let why = "neither a document nor --all is given";
                    return Err(Trouble::new("it is not said what to remove", why, "millrace corpus ls CORPUS"));
                }
            };
            let client = admin(server)?;
            let job = client.delete(&path)?;
            wait(&client, &job, &ProgressBar::hidden())?;
            note(&format!("{} is removed", document.as_deref().unwrap_or(corpus)));
            Ok(ExitCode::SUCCESS)
        }
        CorpusCommand::Search { server, corpus, question, limit, tags, json } => {
            let tags = tags.join(",");
            let path = format!("{}/search?q={}&limit={limit}&tags={}", address(corpus), query(question), query(&tags));
            let found = admin(server)?.get(&path)?;
            if *json {
                out(&format!("{found}\n"));
            } else {
                show(&found);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn address(corpus: &str) -> String {
    format!("/v1/admin/corpora/{}", query(corpus))
}

fn ls(client: &Client, corpus: Option<&str>, json: bool) -> Result<(), Trouble> {
    let Some(corpus) = corpus else {
        let list = client.get("/v1/admin/corpora")?;
        show_list(&list, &["name", "documents", "passages", "embedding_model"], json);
        return Ok(());
    };
    // All pages as one list.
    let mut all: Vec<Value> = Vec::new();
    loop {
        let after = all.last().map_or(0, |last| last["number"].as_u64().unwrap_or(0));
        let page = client.get(&format!("{}/documents?after={after}&limit=1000", address(corpus)))?;
        all.extend(page["data"].as_array().cloned().unwrap_or_default());
        if page["has_more"].as_bool() != Some(true) {
            break;
        }
    }
    let list = serde_json::json!({"object": "list", "data": all});
    show_list(&list, &["name", "kind", "bytes", "passages", "tags"], json);
    Ok(())
}

fn show(found: &Value) {
    let hits = found["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    if hits.is_empty() {
        note("nothing is found");
    }
    for (number, hit) in (1..).zip(hits) {
        let (document, citation) = (text(hit, "document"), text(hit, "citation"));
        let place = if citation.is_empty() { document } else { format!("{document}, {citation}") };
        let lines = text(hit, "text").replace('\n', "\n   ");
        out(&format!("{number}. {place}\n   {lines}\n\n"));
    }
}

/// Exit code 1 when a file was not taken in; the others are.
fn add(client: &Client, corpus: &str, paths: &[PathBuf], tags: &[String]) -> Result<ExitCode, Trouble> {
    let mut files = Vec::new();
    for path in paths {
        collect(path, &mut files)?;
    }
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{spinner} [{bar:30}] {pos}/{len} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    let (mut failed, total) = (0, files.len());
    for (number, path) in (1..).zip(&files) {
        let name = document_name(path);
        bar.set_message(format!("{name} ({number} of {total})"));
        match send(client, corpus, path, &name, tags, &bar) {
            Ok(done) => bar.suspend(|| tell(&name, &done)),
            Err(trouble) => {
                failed += 1;
                bar.suspend(|| super::print::trouble(&trouble));
            }
        }
    }
    bar.finish_and_clear();
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    note(&format!("{failed} of {total} files were not taken in"));
    Ok(ExitCode::FAILURE)
}

fn tell(name: &str, done: &Value) {
    let result = &done["result"];
    let passages = result["passages"].as_u64().unwrap_or(0);
    if done["unchanged"].as_bool() == Some(true) {
        out(&format!("{name}: unchanged\n"));
    } else {
        out(&format!("{name}: {passages} passages\n"));
    }
    for said in result["notes"].as_array().map(Vec::as_slice).unwrap_or_default() {
        note(&format!("{name}: {}", said.as_str().unwrap_or_default()));
    }
}

fn send(
    client: &Client,
    corpus: &str,
    path: &Path,
    name: &str,
    tags: &[String],
    bar: &ProgressBar,
) -> Result<Value, Trouble> {
    let unreadable = |error: std::io::Error| {
        Trouble::new(format!("{} cannot be read", path.display()), error.to_string(), "check the path and its mode")
    };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > DOCUMENT_BYTES_MAX as u64 {
        let why = format!("it has {size} bytes; a document has at most {DOCUMENT_BYTES_MAX}");
        return Err(Trouble::new(format!("{} is too large", path.display()), why, "split it"));
    }
    let bytes = std::fs::read(path).map_err(unreadable)?;
    let address = format!("{}/documents?name={}&tags={}", address(corpus), query(name), query(&tags.join(",")));
    let job = client.upload(&address, bytes)?;
    bar.set_length(0);
    bar.set_position(0);
    wait(client, &job, bar)
}

/// Looks at a job until it has ended.
fn wait(client: &Client, job: &Value, bar: &ProgressBar) -> Result<Value, Trouble> {
    let path = format!("/v1/admin/corpus-jobs/{}", query(&text(job, "job")));
    loop {
        let job = client.get(&path)?;
        match job["state"].as_str().unwrap_or_default() {
            "added" | "removed" => return Ok(job),
            "failed" => {
                let what = format!("{} was not taken in", job["document"].as_str().unwrap_or("the corpus"));
                let message = text(&job["error"], "message");
                let (why, next) = message.rsplit_once("; ").unwrap_or((message.as_str(), "look at the server's log"));
                return Err(Trouble::new(what, why, next));
            }
            _ => {
                bar.set_length(job["total"].as_u64().unwrap_or(0));
                bar.set_position(job["done"].as_u64().unwrap_or(0));
                bar.tick();
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}

/// A file, or every readable file below a folder, in the order of their names.
fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Trouble> {
    let unreadable = |path: &Path, error: std::io::Error| {
        Trouble::new(format!("{} cannot be read", path.display()), error.to_string(), "check the path and its mode")
    };
    if !path.is_dir() {
        std::fs::metadata(path).map_err(|error| unreadable(path, error))?;
        files.push(path.to_owned());
        return Ok(());
    }
    let mut folders = vec![path.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| unreadable(&folder, error))? {
            let entry = entry.map_err(|error| unreadable(&folder, error))?;
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let kind = entry.file_type().map_err(|error| unreadable(&folder, error))?;
            // Links are not followed: a folder may lead to itself.
            if kind.is_dir() && !hidden {
                folders.push(entry.path());
            } else if kind.is_file() && !hidden && Kind::of_name(&entry.file_name().to_string_lossy()).is_some() {
                found.push(entry.path());
            }
        }
        if found.len() > FILES_MAX {
            let why = format!("it has more than {FILES_MAX} files");
            return Err(Trouble::new(format!("{} is too large", path.display()), why, "add its folders one by one"));
        }
    }
    found.sort_unstable();
    files.append(&mut found);
    Ok(())
}

/// The path without what says nothing about the document.
fn document_name(path: &Path) -> String {
    let parts = path.components().filter_map(|part| match part {
        std::path::Component::Normal(part) => Some(part.to_string_lossy()),
        _ => None,
    });
    let parts: Vec<_> = parts.collect();
    // An absolute path names the machine it came from; its last part names the document.
    if path.is_absolute() { parts.last().map(|last| last.to_string()).unwrap_or_default() } else { parts.join("/") }
}
