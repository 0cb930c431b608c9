//! `millrace backup`: copies of the data, made by the running server or on a data folder that rests.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use millrace_proto::date::rfc3339;
use millrace_storage::{ArchiveError, BackupChecked, BackupListed, BackupReader, Budget, Target};
use serde_json::{Value, json};

use super::admin::admin;
use super::client::{Client, ServerArgs};
use super::print::{note, out, table};
use super::settings::SealFlags;
use crate::backup::chain;
use crate::backup::place::Place;
use crate::config::{self, Config, human_bytes};
use crate::control::Control;
use crate::node;
use crate::trouble::Trouble;

/// Pause between two looks at a running backup.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const IN_SERVER: &str = "GET /v1/admin/backups says how it went";

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    #[command(subcommand)]
    command: BackupCommand,
}

#[derive(Debug, Subcommand)]
enum BackupCommand {
    /// Make a backup: by the running server, or with --offline of a data folder that no server uses
    Create {
        #[command(flatten)]
        server: ServerArgs,
        /// Where to: a folder, or s3://bucket/prefix. Default: backup.target of the configuration
        #[arg(long, value_name = "PLACE")]
        to: Option<String>,
        /// How many backups of this data folder to keep there; 0 keeps all. Default: backup.keep
        #[arg(long)]
        keep: Option<usize>,
        /// Read the data folder here instead of asking a server
        #[arg(long)]
        offline: bool,
        #[command(flatten)]
        settings: SealFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the backups in a place; needs no key
    Ls {
        #[command(flatten)]
        from: FromArgs,
        #[command(flatten)]
        settings: SealFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Read everything of a backup and check it; writes nothing
    Verify {
        #[command(flatten)]
        from: FromArgs,
        /// The backup, as `backup ls` names it. Default: the newest
        #[arg(long, value_name = "ID")]
        at: Option<String>,
        #[command(flatten)]
        settings: SealFlags,
    },
    /// Make a data folder of a backup; needs the key of keys that the store had then
    Restore {
        #[command(flatten)]
        from: FromArgs,
        /// The new data folder; it must be empty, or not there
        #[arg(long, value_name = "FOLDER")]
        into: PathBuf,
        /// The backup, as `backup ls` names it. Default: the newest
        #[arg(long, value_name = "ID")]
        at: Option<String>,
        #[command(flatten)]
        settings: SealFlags,
    },
    /// Tell how the running server's backups are
    Status {
        #[command(flatten)]
        server: ServerArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct FromArgs {
    /// Where the backups are: a folder, or s3://bucket/prefix. Default: backup.target of the configuration
    #[arg(long, value_name = "PLACE")]
    from: Option<String>,
}

pub(super) fn run(args: &BackupArgs) -> Result<ExitCode, Trouble> {
    match &args.command {
        BackupCommand::Create { server, to, keep, offline: false, json, .. } => {
            create(server, to.as_deref(), *keep, *json)
        }
        BackupCommand::Create { to, keep, settings, json, .. } => {
            let config = config::load_without_channels(&settings.flags)?.config;
            create_offline(&config, to.as_deref(), *keep, *json)
        }
        BackupCommand::Ls { from, settings, json } => {
            let config = config::load_without_channels(&settings.flags)?.config;
            ls(&Opened::new(&config, from.from.as_deref())?, *json)
        }
        BackupCommand::Verify { from, at, settings } => {
            let config = config::load_without_channels(&settings.flags)?.config;
            let opened = Opened::new(&config, from.from.as_deref())?;
            let checked = opened
                .with_progress("checked", |target, budget| reader(target, &config)?.verify(at.as_deref(), budget))?;
            let BackupChecked { summary, objects } = checked;
            let bytes = human_bytes(summary.bytes);
            out(&format!("{} is whole: {} files, {bytes}, {objects} objects opened\n", summary.id, summary.files));
            Ok(ExitCode::SUCCESS)
        }
        BackupCommand::Restore { from, into, at, settings } => {
            let config = config::load_without_channels(&settings.flags)?.config;
            let opened = Opened::new(&config, from.from.as_deref())?;
            let restored = opened.with_progress("restored", |target, budget| {
                reader(target, &config)?.restore(at.as_deref(), into, budget)
            })?;
            let summary = restored.summary;
            out(&format!("{} is in {}: {}\n", summary.id, into.display(), human_bytes(summary.bytes)));
            note(&format!(
                "Start it with `millrace serve --data {}` and the same key of keys (storage.key_file, now {}). \
                 Settings, models and certificates are not in a backup",
                into.display(),
                config.storage.key_file.display()
            ));
            Ok(ExitCode::SUCCESS)
        }
        BackupCommand::Status { server, json } => status(&admin(server)?, *json),
    }
}

/// A place with the thread that its calls run on.
struct Opened {
    control: Control,
    target: Box<dyn Target>,
}

impl Opened {
    fn new(config: &Config, named: Option<&str>) -> Result<Self, Trouble> {
        let place = match named {
            Some(text) => Some(place(text)?),
            None => config.backup.target.clone(),
        };
        let Some(place) = place else {
            let why = "neither the command nor backup.target names one";
            return Err(Trouble::new(
                "it is not clear where the backups are",
                why,
                "name a place, or set backup.target",
            ));
        };
        let control = Control::start().map_err(|error| {
            Trouble::new("the HTTP client cannot start", error.to_string(), "check `ulimit -u` and `ulimit -n`")
        })?;
        let target =
            place.open(&control, Arc::new(AtomicBool::new(false))).map_err(|why| unusable(&place.url(), why))?;
        Ok(Self { control, target })
    }

    /// Works with the target while a person sees how far it is.
    fn with_progress<T: Send>(
        &self,
        done: &str,
        work: impl FnOnce(&dyn Target, &Budget) -> Result<T, ArchiveError> + Send,
    ) -> Result<T, Trouble> {
        let (bar, budget, target) = (bytes_bar(done), Budget::new(0), &*self.target);
        std::thread::scope(|scope| {
            let working = scope.spawn(|| work(target, &budget));
            while !working.is_finished() {
                bar.set_position(budget.spent());
                std::thread::park_timeout(LOOK_EVERY);
            }
            bar.finish_and_clear();
            working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(|error| failed(&error))
        })
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.control.shutdown();
    }
}

fn bytes_bar(done: &str) -> ProgressBar {
    let bar = ProgressBar::no_length();
    let style = ProgressStyle::with_template(&format!("{{spinner}} {{bytes}} {done} ({{bytes_per_sec}})"));
    bar.set_style(style.expect("a valid template"));
    bar
}

fn reader<'a>(target: &'a dyn Target, config: &Config) -> Result<BackupReader<'a>, ArchiveError> {
    BackupReader::new(target, &config.storage.key_source, &config.storage.key_file)
}

fn place(text: &str) -> Result<Place, Trouble> {
    Place::parse(text, true).map_err(|why| unusable(text, why))
}

fn unusable(place: &str, why: String) -> Trouble {
    Trouble::new(
        format!("{place} cannot be used for backups"),
        why,
        "`millrace backup --help` says how places are written",
    )
}

/// An error of the store, whose last sentence is what to do.
fn failed(error: &ArchiveError) -> Trouble {
    let text = error.to_string();
    let (what, next) = text.rsplit_once(". ").unwrap_or((&text, "look at the message above"));
    let cause = chain(error);
    let why = cause.strip_prefix(text.as_str()).unwrap_or_default().trim().trim_matches(['(', ')']);
    Trouble::new(what, why, next)
}

fn create(server: &ServerArgs, to: Option<&str>, keep: Option<usize>, json: bool) -> Result<ExitCode, Trouble> {
    let client = admin(server)?;
    let mut body = json!({});
    if let Some(to) = to {
        // A relative path is meant from here, not from where the server runs.
        body["to"] = json!(place(to)?.url());
    }
    if let Some(keep) = keep {
        body["keep"] = json!(keep);
    }
    let asked = client.post("/v1/admin/backups", &body)?;
    let run = asked["run"].as_str().unwrap_or_default().to_owned();
    let bar = bytes_bar("read and written");
    let outcome = loop {
        let status = client.get("/v1/admin/backups")?;
        bar.set_position(status["running"]["bytes_read_and_written"].as_u64().unwrap_or_default());
        let ended = status["runs"].as_array().into_iter().flatten().find(|ended| ended["run"] == run.as_str());
        if let Some(ended) = ended {
            break ended.clone();
        }
        std::thread::park_timeout(LOOK_EVERY);
    };
    bar.finish_and_clear();
    if let Some(why) = outcome["error"].as_str() {
        return Err(Trouble::new("the backup was not made", why, IN_SERVER));
    }
    show_made(&outcome["made"], json);
    Ok(ExitCode::SUCCESS)
}

fn create_offline(config: &Config, to: Option<&str>, keep: Option<usize>, json: bool) -> Result<ExitCode, Trouble> {
    let opened = Opened::new(config, to)?;
    if !config.data.join("db").exists() {
        let why = format!("{} holds no store", config.data.display());
        return Err(Trouble::new("there is nothing to copy", why, "name the data folder with --data"));
    }
    let store = node::open_store(config)?;
    let keep = keep.unwrap_or(config.backup.keep);
    let done = opened.with_progress("read and written", |target, budget| store.backup(target, keep, budget));
    store.shutdown();
    let done = done?;
    let made = json!({"id": done.id, "place": opened.target.place(), "bytes": done.bytes, "bytes_sent": done.bytes_sent,
        "removed": done.removed});
    show_made(&made, json);
    Ok(ExitCode::SUCCESS)
}

fn show_made(made: &Value, json: bool) {
    if json {
        out(&format!("{made}\n"));
        return;
    }
    let bytes = |name: &str| human_bytes(made[name].as_u64().unwrap_or_default());
    let text = |name: &str| made[name].as_str().unwrap_or_default().to_owned();
    out(&format!("{} is in {}: {}, {} sent\n", text("id"), text("place"), bytes("bytes"), bytes("bytes_sent")));
    note("The key of keys is not in it: keep that apart, a restore needs both");
}

fn ls(opened: &Opened, json: bool) -> Result<ExitCode, Trouble> {
    let listed = BackupReader::list(&*opened.target).map_err(|error| failed(&error))?;
    if json {
        let object = |listed: &BackupListed| match &listed.state {
            Ok(it) => json!({"id": it.id, "made_ms": it.made_ms, "bytes": it.bytes, "files": it.files,
                "schema": it.schema, "seq": it.seq, "key": it.key}),
            Err(error) => json!({"id": listed.id, "error": chain(error)}),
        };
        out(&format!("{}\n", json!({"data": listed.iter().map(object).collect::<Vec<_>>()})));
        return Ok(ExitCode::SUCCESS);
    }
    let row = |listed: &BackupListed| match &listed.state {
        Ok(it) => vec![
            it.id.clone(),
            rfc3339(it.made_ms),
            human_bytes(it.bytes),
            it.files.to_string(),
            it.schema.to_string(),
            it.key.clone(),
        ],
        Err(error) => vec![listed.id.clone(), chain(error)],
    };
    let rows: Vec<Vec<String>> = listed.iter().map(row).collect();
    out(&table(&["ID", "MADE", "SIZE", "FILES", "SCHEMA", "KEY OF KEYS"], &rows));
    Ok(ExitCode::SUCCESS)
}

fn status(client: &Client, json: bool) -> Result<ExitCode, Trouble> {
    let status = client.get("/v1/admin/backups")?;
    if json {
        out(&format!("{status}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let running = match &status["running"] {
        Value::Null => "no".to_owned(),
        running => format!("to {}", running["place"].as_str().unwrap_or_default()),
    };
    let last = match &status["last"] {
        Value::Null => "never".to_owned(),
        made => format!(
            "{} in {} at {}",
            made["id"].as_str().unwrap_or_default(),
            made["place"].as_str().unwrap_or_default(),
            rfc3339(made["at_ms"].as_u64().unwrap_or_default())
        ),
    };
    let next = status["next_ms"].as_u64().map_or("not by itself".to_owned(), rfc3339);
    let waiting = status["keys_waiting"].as_u64().unwrap_or_default();
    out(&format!("running       {running}\nlast          {last}\nnext          {next}\nkeys waiting  {waiting}\n"));
    for run in status["runs"].as_array().into_iter().flatten() {
        if let Some(why) = run["error"].as_str() {
            note(&format!("run {} failed: {why}", run["run"].as_str().unwrap_or_default()));
        }
    }
    if let Some(why) = status["keys_error"].as_str() {
        note(&format!("copies of keys could not be overwritten yet: {why}"));
    }
    Ok(ExitCode::SUCCESS)
}
