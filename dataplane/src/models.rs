//! The models folder: which models lie there, and which one a name means.
//!
//! A chat model is one GGUF file; an encoder is a folder with `config.json`, `model.safetensors` and
//! `vocab.txt`. Beside a model that was added by command lies `NAME.sha256`, in the format of `sha256sum`.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use millrace_inference::Speculation;
use ring::digest::{Context, SHA256};

use crate::config::{Config, nearest};
use crate::trouble::Trouble;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Generates text.
    Chat,
    /// Embeds text.
    Encoder,
}

impl Kind {
    /// The word in lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Encoder => "encoder",
        }
    }
}

/// One model of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// File or folder name.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// What it is for.
    pub kind: Kind,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// Files that make a folder an encoder.
pub const ENCODER_FILES: [&str; 3] = ["config.json", "model.safetensors", "vocab.txt"];
/// Entries of a models folder that are looked at.
const ENTRIES_MAX: usize = 10_000;

/// What kind of model lies at `path`, if any.
pub fn kind_of(path: &Path) -> Option<Kind> {
    let gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if gguf && path.is_file() {
        return Some(Kind::Chat);
    }
    ENCODER_FILES.iter().all(|file| path.join(file).is_file()).then_some(Kind::Encoder)
}

/// The file that holds the weights of a model.
pub fn weights_file(path: &Path, kind: Kind) -> PathBuf {
    match kind {
        Kind::Chat => path.to_owned(),
        Kind::Encoder => path.join("model.safetensors"),
    }
}

/// All models of a folder, by name.
pub fn list(folder: &Path) -> Result<Vec<Found>, Trouble> {
    let entries = fs::read_dir(folder).map_err(|error| {
        let what = format!("the models folder {} cannot be read", folder.display());
        let next = format!(
            "put a model there with `millrace model add FILE.gguf --models {}`, or name another folder with --models",
            folder.display()
        );
        Trouble::new(what, error.to_string(), next)
    })?;
    let mut found = Vec::new();
    for entry in entries.filter_map(Result::ok).take(ENTRIES_MAX) {
        let path = entry.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.')) else {
            continue;
        };
        if let Some(kind) = kind_of(&path) {
            let bytes = fs::metadata(weights_file(&path, kind)).map_or(0, |metadata| metadata.len());
            found.push(Found { name: name.to_owned(), path: path.clone(), kind, bytes });
        }
    }
    found.sort_by(|one, two| one.name.cmp(&two.name));
    Ok(found)
}

/// The model of `folder` that `name` means: its file name, with or without `.gguf`.
pub fn by_name(folder: &Path, name: &str) -> Result<Found, Trouble> {
    let all = list(folder)?;
    let stem = |model: &Found| model.name.strip_suffix(".gguf").map(str::to_owned);
    if let Some(model) = all.iter().find(|model| model.name == name || stem(model).as_deref() == Some(name)) {
        return Ok(model.clone());
    }
    let near = nearest(name, all.iter().map(|model| model.name.as_str()));
    let names: Vec<&str> = all.iter().map(|model| model.name.as_str()).collect();
    let why = if names.is_empty() {
        format!("the folder {} holds no model", folder.display())
    } else {
        format!("{} holds: {}", folder.display(), names.join(", "))
    };
    let next = near.map_or("millrace model ls lists the models".to_owned(), |near| format!("did you mean `{near}`?"));
    Err(Trouble::new(format!("there is no model {name:?}"), why, next))
}

/// The chat model that a configuration means.
pub fn chat_model(config: &Config) -> Result<Found, Trouble> {
    if let Some(path) = &config.model_endpoint {
        return at_path(Path::new(path), Kind::Chat, "MODEL_ENDPOINT");
    }
    match &config.model {
        Some(name) => named(config, name, Kind::Chat, "model"),
        None => {
            let next = format!(
                "add one with `millrace model add FILE.gguf --models {}`, or name a folder that has one with --models",
                config.models.display()
            );
            only(config, Kind::Chat, "model")?.ok_or_else(|| {
                let what = format!("there is no chat model in {}", config.models.display());
                Trouble::new(what, "the folder holds no file whose name ends in .gguf", next)
            })
        }
    }
}

/// The model that guesses for the chat model, if a configuration means one and the engine may guess.
pub fn draft_model(config: &Config) -> Result<Option<Found>, Trouble> {
    let name = config.draft_model.as_ref().filter(|_| config.engine.speculation != Speculation::Off);
    name.map(|name| named(config, name, Kind::Chat, "draft_model")).transpose()
}

/// The model that answers when the chat model would be late, if a configuration means one.
pub fn small_model(config: &Config) -> Result<Option<Found>, Trouble> {
    config.small_model.as_ref().map(|name| named(config, name, Kind::Chat, "small_model")).transpose()
}

/// The encoder that a configuration means; `None` when there is none or it is turned off.
pub fn encoder(config: &Config) -> Result<Option<Found>, Trouble> {
    match (&config.embedding_model, config.embeddings) {
        (_, false) => Ok(None),
        (Some(name), true) => named(config, name, Kind::Encoder, "embedding_model").map(Some),
        (None, true) => only(config, Kind::Encoder, "embedding_model"),
    }
}

fn named(config: &Config, name: &str, kind: Kind, key: &str) -> Result<Found, Trouble> {
    let found = if name.contains('/') { at_path(Path::new(name), kind, key)? } else { by_name(&config.models, name)? };
    if found.kind == kind {
        return Ok(found);
    }
    let why = format!("it is a model of the kind `{}`", found.kind.as_str());
    Err(Trouble::new(format!("{key} = {name:?} cannot be used"), why, "millrace model ls shows the kinds"))
}

fn at_path(path: &Path, kind: Kind, key: &str) -> Result<Found, Trouble> {
    let trouble = |why: String| {
        Trouble::new(format!("{key} = {:?} cannot be used", path.display()), why, "check the path with `ls -l`")
    };
    if !path.exists() {
        return Err(trouble("there is no such file or folder".into()));
    }
    // A file that was named explicitly is a model by that; its content decides, not its extension.
    let kind = if path.is_file() { Kind::Chat } else { kind_of(path).unwrap_or(kind) };
    if kind == Kind::Encoder && kind_of(path).is_none() {
        return Err(trouble(format!("an encoder folder holds {}", ENCODER_FILES.join(", "))));
    }
    let bytes = fs::metadata(weights_file(path, kind)).map_err(|error| trouble(error.to_string()))?.len();
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(Found { name, path: path.to_owned(), kind, bytes })
}

fn only(config: &Config, kind: Kind, key: &str) -> Result<Option<Found>, Trouble> {
    let mut all: Vec<Found> = list(&config.models)?.into_iter().filter(|model| model.kind == kind).collect();
    if all.len() > 1 {
        let names: Vec<&str> = all.iter().map(|model| model.name.as_str()).collect();
        let what = format!("it is not clear which {} model to use", kind.as_str());
        let why = format!("{} holds several: {}", config.models.display(), names.join(", "));
        let flag = key.replace('_', "-");
        return Err(Trouble::new(what, why, format!("choose one, for example --{flag} {}", names[0])));
    }
    Ok(all.pop())
}

/// SHA-256 of a file as hex; `progress` hears the bytes read so far.
pub fn sha256_of(path: &Path, mut progress: impl FnMut(u64)) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut chunk = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let count = file.read(&mut chunk)?;
        if count == 0 {
            return Ok(hex(context.finish().as_ref()));
        }
        context.update(&chunk[..count]);
        total += count as u64;
        progress(total);
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the recorded checksum of a model lies.
pub fn checksum_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.sha256"))
}

/// The recorded checksum of a model, if there is one.
pub fn recorded_checksum(model: &Found) -> Option<String> {
    let text = fs::read_to_string(checksum_file(model.path.parent()?, &model.name)).ok()?;
    text.split_whitespace().next().filter(|hex| hex.len() == 64).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        folder
    }

    #[test]
    fn files_and_encoder_folders_are_listed_and_others_are_not() {
        let folder = folder_with(&[
            "b.gguf",
            "a.GGUF",
            "notes.txt",
            ".hidden.gguf",
            "e/config.json",
            "e/model.safetensors",
            "e/vocab.txt",
            "half/config.json",
        ]);
        let names: Vec<String> = list(folder.path()).unwrap().into_iter().map(|model| model.name).collect();
        assert_eq!(names, ["a.GGUF", "b.gguf", "e"]);
        assert_eq!(by_name(folder.path(), "b").unwrap().kind, Kind::Chat);
        assert_eq!(by_name(folder.path(), "e").unwrap().kind, Kind::Encoder);
        assert!(by_name(folder.path(), "b.ggu").unwrap_err().next.contains("b.gguf"));
        assert!(by_name(folder.path(), "../b.gguf").is_err());
        assert!(list(&folder.path().join("none")).unwrap_err().what.contains("none"));
    }

    #[test]
    fn a_checksum_is_that_of_the_content() {
        let folder = folder_with(&["abc"]);
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256_of(&folder.path().join("abc"), |_| ()).unwrap(), expected);
    }
}
