//! `millrace model`: the models folder by command.

use std::fs::{self, File};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use millrace_inference::gguf::Gguf;
use ring::digest::{Context, SHA256};
use serde_json::{Value, json};

use super::FolderFlags;
use super::print::{note, out, table};
use crate::config::{self, human_bytes};
use crate::models::{self, ENCODER_FILES, Found, Kind};
use crate::trouble::Trouble;

#[derive(Debug, Args)]
pub(super) struct ModelArgs {
    #[command(subcommand)]
    command: ModelCommand,
}

#[derive(Debug, Subcommand)]
enum ModelCommand {
    /// Copy a GGUF file or an encoder folder into the models folder
    Add {
        /// The file or folder
        path: PathBuf,
        #[command(flatten)]
        folders: FolderFlags,
    },
    /// List the models
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        folders: FolderFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show what a model says of itself, with its SHA-256
    Show {
        /// Name as `model ls` shows it
        name: String,
        #[command(flatten)]
        folders: FolderFlags,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete a model from the models folder
    Rm {
        /// Name as `model ls` shows it
        name: String,
        #[command(flatten)]
        folders: FolderFlags,
    },
}

pub(super) fn run(args: &ModelArgs) -> Result<ExitCode, Trouble> {
    match &args.command {
        ModelCommand::Add { path, folders } => add(path, &folder_of(folders)?),
        ModelCommand::Ls { folders, json } => ls(&folder_of(folders)?, *json),
        ModelCommand::Show { name, folders, json } => show(&folder_of(folders)?, name, *json),
        ModelCommand::Rm { name, folders } => rm(&folder_of(folders)?, name),
    }
}

fn folder_of(folders: &FolderFlags) -> Result<PathBuf, Trouble> {
    Ok(config::load(&folders.flags)?.config.models)
}

fn ls(folder: &Path, json: bool) -> Result<ExitCode, Trouble> {
    let models = models::list(folder)?;
    if json {
        let rows: Vec<Value> = models.iter().map(brief).collect();
        out(&format!("{}\n", Value::Array(rows)));
        return Ok(ExitCode::SUCCESS);
    }
    if models.is_empty() {
        note(&format!("no models in {}", folder.display()));
        return Ok(ExitCode::SUCCESS);
    }
    let row = |model: &Found| vec![model.name.clone(), model.kind.as_str().to_owned(), human_bytes(model.bytes)];
    out(&table(&["NAME", "KIND", "SIZE"], &models.iter().map(row).collect::<Vec<_>>()));
    Ok(ExitCode::SUCCESS)
}

fn brief(model: &Found) -> Value {
    json!({"name": model.name, "kind": model.kind.as_str(), "bytes": model.bytes, "path": model.path.display().to_string()})
}

fn show(folder: &Path, name: &str, json: bool) -> Result<ExitCode, Trouble> {
    let model = models::by_name(folder, name)?;
    let mut document = brief(&model);
    let facts = match model.kind {
        Kind::Chat => chat_facts(&model.path)?,
        Kind::Encoder => encoder_facts(&model.path)?,
    };
    for (name, value) in facts {
        document[name] = value;
    }
    let weights = models::weights_file(&model.path, model.kind);
    let digest = models::sha256_of(&weights, |_| ()).map_err(|error| unreadable(&weights, &error))?;
    if let Some(recorded) = models::recorded_checksum(&model) {
        document["sha256_as_recorded"] = json!(recorded == digest);
    }
    document["sha256"] = json!(digest);
    if json {
        out(&format!("{document}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for (name, value) in document.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.push_str(&format!("{name:<20} {value}\n"));
    }
    out(&text);
    Ok(ExitCode::SUCCESS)
}

/// What a GGUF file says of itself.
fn chat_facts(path: &Path) -> Result<Vec<(&'static str, Value)>, Trouble> {
    let gguf = Gguf::open(path).map_err(|error| not_a_model(path, &error))?;
    let arch = gguf.str("general.architecture").map_err(|error| not_a_model(path, &error))?.to_owned();
    let number = |key: &str| gguf.u64(&format!("{arch}.{key}")).ok();
    let mut formats: Vec<(String, u64)> = Vec::new();
    let mut parameters = 0;
    for tensor in gguf.tensors() {
        let count = tensor.columns as u64 * tensor.rows as u64;
        parameters += count;
        let name = format!("{:?}", tensor.kind);
        match formats.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum)) => *sum += count,
            None => formats.push((name, count)),
        }
    }
    formats.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let formats: Vec<&str> = formats.iter().map(|(name, _)| name.as_str()).collect();
    Ok(vec![
        ("title", json!(gguf.str("general.name").ok())),
        ("architecture", json!(arch)),
        ("parameters", json!(parameters)),
        ("layers", json!(number("block_count"))),
        ("width", json!(number("embedding_length"))),
        ("context_max", json!(number("context_length"))),
        ("vocabulary", json!(gguf.array("tokenizer.ggml.tokens").ok().map(|tokens| tokens.len()))),
        ("formats", json!(formats.join(", "))),
        ("chat_template", json!(gguf.str("tokenizer.chat_template").is_ok())),
        ("licence", json!(gguf.str("general.license").ok())),
    ])
}

/// What an encoder's `config.json` says of it.
fn encoder_facts(path: &Path) -> Result<Vec<(&'static str, Value)>, Trouble> {
    let file = path.join("config.json");
    let text = fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
    let config: Value = serde_json::from_str(&text).map_err(|error| not_a_model(&file, &error))?;
    let pick = |name: &str| config[name].clone();
    Ok(vec![
        ("architecture", pick("model_type")),
        ("layers", pick("num_hidden_layers")),
        ("width", pick("hidden_size")),
        ("context_max", pick("max_position_embeddings")),
        ("vocabulary", pick("vocab_size")),
    ])
}

fn not_a_model(path: &Path, error: &dyn std::error::Error) -> Trouble {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        why.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    let next = "use a complete GGUF file (compare its SHA-256 with the publisher's), or a folder with an encoder";
    Trouble::new(format!("{} is not a model that can be used", path.display()), why, next)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Trouble {
    Trouble::new(format!("{} cannot be read", path.display()), error.to_string(), "check the path and its mode")
}

fn add(source: &Path, folder: &Path) -> Result<ExitCode, Trouble> {
    if !source.exists() {
        let why = std::io::Error::from(std::io::ErrorKind::NotFound);
        return Err(unreadable(source, &why));
    }
    let kind = if source.is_file() { Kind::Chat } else { Kind::Encoder };
    if kind == Kind::Encoder && models::kind_of(source).is_none() {
        let why = format!("an encoder folder holds {}", ENCODER_FILES.join(", "));
        let next = "give a .gguf file or a complete encoder folder";
        return Err(Trouble::new(format!("{} is not a model", source.display()), why, next));
    }
    // Nothing is copied before the model has proved to be readable.
    match kind {
        Kind::Chat => chat_facts(source).map(drop)?,
        Kind::Encoder => encoder_facts(source).map(drop)?,
    }
    let mut name =
        source.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_str()?.to_owned())).ok_or_else(|| {
            Trouble::new(format!("{} has no usable name", source.display()), "its name is not UTF-8", "rename it")
        })?;
    if kind == Kind::Chat && !name.to_ascii_lowercase().ends_with(".gguf") {
        name.push_str(".gguf");
    }
    let target = folder.join(&name);
    if target.exists() {
        let next = format!("remove it first: millrace model rm {name}");
        return Err(Trouble::new(format!("{} is there already", target.display()), "nothing is overwritten", next));
    }
    let digest = copy_in(source, folder, &name, kind).map_err(|error| {
        let next = "check the space with `df -h` and the mode of the folder";
        Trouble::new(format!("{} cannot be copied to {}", source.display(), folder.display()), error.to_string(), next)
    })?;
    out(&format!("{name}\n"));
    note(&format!("added to {} (sha256 {digest})", folder.display()));
    Ok(ExitCode::SUCCESS)
}

/// Copies under a temporary name, then renames: a broken copy is never taken for a model.
fn copy_in(source: &Path, folder: &Path, name: &str, kind: Kind) -> std::io::Result<String> {
    fs::create_dir_all(folder)?;
    let part = folder.join(format!(".{name}.part"));
    let digest = match kind {
        Kind::Chat => copy_file(source, &part)?,
        Kind::Encoder => copy_encoder(source, &part)?,
    };
    fs::rename(&part, folder.join(name))?;
    let weights = match kind {
        Kind::Chat => name.to_owned(),
        Kind::Encoder => format!("{name}/model.safetensors"),
    };
    fs::write(models::checksum_file(folder, name), format!("{digest}  {weights}\n"))?;
    File::open(folder)?.sync_all()?;
    Ok(digest)
}

fn copy_encoder(source: &Path, target: &Path) -> std::io::Result<String> {
    let _ = fs::remove_dir_all(target);
    fs::create_dir_all(target)?;
    let mut digest = String::new();
    for file in
        ENCODER_FILES.iter().chain(&["tokenizer_config.json", "sentence_bert_config.json", "1_Pooling/config.json"])
    {
        let path = source.join(file);
        if path.is_file() {
            fs::create_dir_all(target.join(file).parent().unwrap_or(target))?;
            let copied = copy_file(&path, &target.join(file))?;
            if *file == "model.safetensors" {
                digest = copied;
            }
        }
    }
    Ok(digest)
}

/// Copies one file to disk and returns its SHA-256.
fn copy_file(source: &Path, target: &Path) -> std::io::Result<String> {
    let mut from = File::open(source)?;
    let total = from.metadata()?.len().max(1);
    let mut to = File::create(target)?;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; 1 << 20];
    let mut copied = 0;
    let watched = std::io::stderr().is_terminal() && total > 16 << 20;
    loop {
        let count = from.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        context.update(&chunk[..count]);
        to.write_all(&chunk[..count])?;
        copied += count as u64;
        if watched {
            eprint!("\r{} of {} ({} %)", human_bytes(copied), human_bytes(total), copied * 100 / total);
        }
    }
    if watched {
        eprintln!();
    }
    to.sync_all()?;
    Ok(models::hex(context.finish().as_ref()))
}

fn rm(folder: &Path, name: &str) -> Result<ExitCode, Trouble> {
    let model = models::by_name(folder, name)?;
    let removed = if model.path.is_dir() { fs::remove_dir_all(&model.path) } else { fs::remove_file(&model.path) };
    removed.map_err(|error| {
        let what = format!("{} cannot be removed", model.path.display());
        Trouble::new(what, error.to_string(), "check the mode of the models folder")
    })?;
    let _ = fs::remove_file(models::checksum_file(folder, &model.name));
    note(&format!("removed {}", model.path.display()));
    Ok(ExitCode::SUCCESS)
}
