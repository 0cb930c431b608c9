//! The manifest of a backup: signed text, one fact a line.
//!
//! ```text
//! millrace-backup 1
//! line 32 hex                    whose backups these are (one data folder's)
//! number N                       the N-th of its line
//! made_ms N                      Unix milliseconds
//! schema N                       layout of the rows
//! seq N                          every group up to this number is in it
//! slots N                        slots that the file of user keys had
//! key 16 hex                     fingerprint of the key of keys that is needed
//! wrapped BASE64                 key of the line under that key of keys
//! public 64 hex                  Ed25519 key that signs this line's manifests
//! from 32 hex N PLACE            (any number) a line that this data folder was restored from, with its slots
//! file NAME BYTES 64 hex         a file, with the SHA-256 of its last 64 KiB
//! part 32 hex BYTES 64 hex       (each file) object, its plain bytes, SHA-256 of the sealed object
//! keep 32 hex                    (any number) object of archived messages that the rows name
//! end FILES PARTS
//! signature 128 hex              Ed25519 over "millrace backup manifest 1\n" and all lines before
//! ```
//! Text, so that a person can see what a backup holds, and strict, so that there is one way to write one.

use std::fmt::Write as _;

use crate::digest::{self, hex, unhex};

/// Names a line of backups: those of one data folder.
pub type LineId = [u8; 16];
/// Names a sealed object.
pub type ObjectId = [u8; 16];
/// Names a key of keys without telling it.
pub type Fingerprint = [u8; 8];
/// Nonce 12, key 32, tag 16.
pub const WRAPPED_BYTES: usize = 12 + 32 + 16;
/// Plain bytes of one object at most: the memory that a copy takes, twice.
pub const OBJECT_BYTES_MAX: usize = 8 << 20;
/// The file of sealed secrets in a data folder.
pub const VAULT_FILE: &str = "channels.sealed";
/// Largest manifest: some 500,000 parts of 8 MiB, that is 4 TB.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Bytes at the end of a file whose digest tells it from another of its name: the tables' own checksums and ids lie there.
pub const TAIL_BYTES: u64 = 64 << 10;
const FIRST_LINE: &str = "millrace-backup 1";
const SIGNED: &[u8] = b"millrace backup manifest 1\n";
/// Lines that a data folder may come from.
pub const ANCESTORS_MAX: usize = 16;
const PLACE_BYTES_MAX: usize = 4_096;
const NAME_BYTES_MAX: usize = 200;

/// A line that a data folder was restored from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// The line.
    pub line: LineId,
    /// Slots that both have in common.
    pub slots: u64,
    /// Where its backups are: a URL without secrets.
    pub place: String,
}

impl Ancestor {
    /// `from` and all three.
    pub fn to_line(&self) -> String {
        format!("from {} {} {}", hex(&self.line), self.slots, self.place)
    }

    /// What stands behind `from `.
    pub fn read(text: &str) -> Result<Self, &'static str> {
        let mut words = text.splitn(3, ' ');
        let line = words.next().and_then(fixed).ok_or("an ancestor's name has 32 hexadecimal digits")?;
        let slots = words.next().and_then(number).ok_or("an ancestor's slots are a number")?;
        let place = words.next().filter(|place| !place.is_empty() && place.len() <= PLACE_BYTES_MAX);
        let place = place.filter(|place| !place.chars().any(char::is_control)).ok_or("an ancestor has a place")?;
        Ok(Self { line, slots, place: place.to_owned() })
    }
}

/// A piece of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The object that holds it.
    pub id: ObjectId,
    /// Before sealing.
    pub bytes: u64,
    /// Of the sealed object.
    pub sha256: [u8; 32],
}

/// A file of the data folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Relative to the data folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its last [`TAIL_BYTES`].
    pub tail: [u8; 32],
    /// Its pieces, in order.
    pub parts: Vec<Part>,
}

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Whose backups these are.
    pub line: LineId,
    /// Which of them.
    pub number: u64,
    /// Unix milliseconds.
    pub made_ms: u64,
    /// Layout of the rows.
    pub schema: u32,
    /// Every group of writes up to this number is in it.
    pub seq: u64,
    /// Slots that the file of user keys had.
    pub slots: u64,
    /// The key of keys that is needed.
    pub key: Fingerprint,
    /// The key of the line under that key of keys.
    pub wrapped: [u8; WRAPPED_BYTES],
    /// The Ed25519 key that signs.
    pub public: [u8; 32],
    /// Lines that the data folder was restored from.
    pub ancestors: Vec<Ancestor>,
    /// Ascending by name.
    pub files: Vec<File>,
    /// Objects of archived messages that the rows name.
    pub keep: Vec<ObjectId>,
}

impl Manifest {
    /// What people call this backup.
    pub fn id(&self) -> String {
        backup_id(&self.line, self.number)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// All parts of all files.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        self.files.iter().flat_map(|file| &file.parts)
    }

    /// The text, signed by the Ed25519 key that grows from `seed`.
    pub fn to_bytes(&self, seed: &[u8; 32]) -> Vec<u8> {
        let mut text = format!("{FIRST_LINE}\nline {}\nnumber {}\n", hex(&self.line), self.number);
        let mut add = |word: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{word} {value}");
        };
        add("made_ms", self.made_ms.to_string());
        add("schema", self.schema.to_string());
        add("seq", self.seq.to_string());
        add("slots", self.slots.to_string());
        add("key", hex(&self.key));
        add("wrapped", digest::base64(&self.wrapped));
        add("public", hex(&self.public));
        for ancestor in &self.ancestors {
            let _ = writeln!(text, "{}", ancestor.to_line());
        }
        for file in &self.files {
            let _ = writeln!(text, "file {} {} {}", file.name, file.bytes, hex(&file.tail));
            for part in &file.parts {
                let _ = writeln!(text, "part {} {} {}", hex(&part.id), part.bytes, hex(&part.sha256));
            }
        }
        for id in &self.keep {
            let _ = writeln!(text, "keep {}", hex(id));
        }
        let _ = writeln!(text, "end {} {}", self.files.len(), self.parts().count());
        let signature = digest::ed25519_sign(seed, &[SIGNED, text.as_bytes()].concat());
        let _ = writeln!(text, "signature {}", hex(&signature));
        text.into_bytes()
    }

    /// Reads a manifest and checks its signature under the public key that it names. Whether that key is the line's
    /// own is for whoever has the key of keys to say.
    pub fn read(bytes: &[u8]) -> Result<Self, &'static str> {
        let text = std::str::from_utf8(bytes).map_err(|_| "it is not text")?;
        let mut lines = Lines { text, at: 0 };
        if lines.next() != Some(FIRST_LINE) {
            return Err(match text.starts_with("millrace-backup ") {
                true => "it is a manifest of another version of the format",
                false => "it is no manifest",
            });
        }
        let line = lines.word("line").and_then(fixed).ok_or("it names no line")?;
        let mut manifest = Self {
            line,
            number: lines.word("number").and_then(number).ok_or("it has no number")?,
            made_ms: lines.word("made_ms").and_then(number).ok_or("it has no time")?,
            schema: lines.word("schema").and_then(number).and_then(|n| n.try_into().ok()).ok_or("it has no schema")?,
            seq: lines.word("seq").and_then(number).ok_or("it has no sequence number")?,
            slots: lines.word("slots").and_then(number).ok_or("it does not say how many slots there are")?,
            key: lines.word("key").and_then(fixed).ok_or("it names no key of keys")?,
            wrapped: lines.word("wrapped").and_then(wrapped).ok_or("it holds no key")?,
            public: lines.word("public").and_then(fixed).ok_or("it names no signing key")?,
            ancestors: Vec::new(),
            files: Vec::new(),
            keep: Vec::new(),
        };
        manifest.read_lists(&mut lines)?;
        let end = lines.at;
        let signature: [u8; 64] = lines.word("signature").and_then(fixed).ok_or("it is not signed")?;
        if lines.at != text.len() {
            return Err("something stands behind its signature");
        }
        let signed = [SIGNED, &bytes[..end]].concat();
        if !digest::ed25519_verify(&manifest.public, &signed, &signature) {
            return Err("its signature does not fit: it was changed");
        }
        Ok(manifest)
    }

    fn read_lists(&mut self, lines: &mut Lines<'_>) -> Result<(), &'static str> {
        let mut parts = 0u64;
        loop {
            let line = lines.next().ok_or("it was cut off")?;
            let (word, rest) = line.split_once(' ').ok_or("a line has no value")?;
            match word {
                "from" if self.files.is_empty() && self.ancestors.len() < ANCESTORS_MAX => {
                    self.ancestors.push(Ancestor::read(rest)?);
                }
                "file" if self.keep.is_empty() => {
                    self.last_file_is_whole()?;
                    let file = read_file(rest)?;
                    if self.files.last().is_some_and(|before| before.name >= file.name) {
                        return Err("its files are not in order");
                    }
                    self.files.push(file);
                }
                "part" if self.keep.is_empty() => {
                    let part = read_part(rest)?;
                    self.files.last_mut().ok_or("a part belongs to no file")?.parts.push(part);
                    parts += 1;
                }
                "keep" => self.keep.push(fixed(rest).ok_or("an object's name has 32 hexadecimal digits")?),
                "end" => {
                    self.last_file_is_whole()?;
                    let counted = format!("{} {parts}", self.files.len());
                    return if rest == counted { Ok(()) } else { Err("files or parts are missing") };
                }
                _ => return Err("a line is not known, or not where it belongs"),
            }
        }
    }

    fn last_file_is_whole(&self) -> Result<(), &'static str> {
        let Some(file) = self.files.last() else { return Ok(()) };
        let sum = file.parts.iter().try_fold(0u64, |sum, part| sum.checked_add(part.bytes));
        if sum == Some(file.bytes) { Ok(()) } else { Err("the parts of a file are not as long as the file") }
    }
}

/// `3f9a1c2e-17`: enough of the line to tell two in one target apart.
pub fn backup_id(line: &LineId, number: u64) -> String {
    format!("{}-{number}", hex(&line[..4]))
}

/// Lines that end with a line feed, and how far they were read.
struct Lines<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a str> {
        let rest = &self.text[self.at..];
        let end = rest.find('\n')?;
        self.at += end + 1;
        Some(&rest[..end])
    }

    /// The value of the next line, which must start with this word.
    fn word(&mut self, word: &str) -> Option<&'a str> {
        self.next()?.strip_prefix(word)?.strip_prefix(' ')
    }
}

fn read_file(text: &str) -> Result<File, &'static str> {
    let mut words = text.split(' ');
    let name = words.next().filter(|name| is_our_name(name)).ok_or("a file has a name that no data folder has")?;
    let bytes = words.next().and_then(number).ok_or("a file has no size")?;
    let tail = words.next().and_then(fixed).ok_or("a file has no digest")?;
    match words.next() {
        None => Ok(File { name: name.to_owned(), bytes, tail, parts: Vec::new() }),
        Some(_) => Err("a file's line is too long"),
    }
}

fn read_part(text: &str) -> Result<Part, &'static str> {
    let mut words = text.split(' ');
    let id = words.next().and_then(fixed).ok_or("an object's name has 32 hexadecimal digits")?;
    let bytes = words.next().and_then(number).filter(|bytes| (1..=OBJECT_BYTES_MAX as u64).contains(bytes));
    let bytes = bytes.ok_or("a part has no size, or one out of range")?;
    let sha256 = words.next().and_then(fixed).ok_or("a part has no digest")?;
    match words.next() {
        None => Ok(Part { id, bytes, sha256 }),
        Some(_) => Err("a part's line is too long"),
    }
}

/// A restore writes below its folder only, and only what a data folder has: files of the database and the vault.
fn is_our_name(name: &str) -> bool {
    let own = name.strip_prefix("db/").unwrap_or(if name == VAULT_FILE { name } else { "" });
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !own.is_empty() && own.len() <= NAME_BYTES_MAX && !own.starts_with('.') && own.bytes().all(plain)
}

/// Digits without sign or leading zeros: one way to write a number.
fn number(text: &str) -> Option<u64> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
    text.parse().ok().filter(|_| plain)
}

fn fixed<const N: usize>(text: &str) -> Option<[u8; N]> {
    // `unhex` takes capitals too; there is one way to write a digest.
    if text.len() != 2 * N || text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    unhex(text)?.try_into().ok()
}

fn wrapped(text: &str) -> Option<[u8; WRAPPED_BYTES]> {
    digest::unbase64(text)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: [u8; 32] = [1; 32];

    fn sample() -> Manifest {
        let part = |n: u8, bytes| Part { id: [n; 16], bytes, sha256: [n; 32] };
        Manifest {
            line: [3; 16],
            number: 17,
            made_ms: 1_764_464_362_000,
            schema: 4,
            seq: 88_123,
            slots: 12,
            key: [5; 8],
            wrapped: [6; WRAPPED_BYTES],
            public: digest::ed25519_public(&SEED),
            ancestors: vec![Ancestor { line: [8; 16], slots: 3, place: "file:///a folder/with spaces".into() }],
            files: vec![
                File { name: "channels.sealed".into(), bytes: 0, tail: [0; 32], parts: vec![] },
                File { name: "db/000012.sst".into(), bytes: 30, tail: [1; 32], parts: vec![part(1, 10), part(2, 20)] },
            ],
            keep: vec![[9; 16]],
        }
    }

    fn text() -> String {
        String::from_utf8(sample().to_bytes(&SEED)).unwrap()
    }

    /// Signed again, so that only what is said about the change can refuse it.
    fn changed(from: &str, to: &str) -> Result<Manifest, &'static str> {
        let text = text();
        let (signed, _) = text.split_once("signature ").unwrap();
        assert!(signed.contains(from), "{from}");
        let signed = signed.replacen(from, to, 1);
        let signature = digest::ed25519_sign(&SEED, &[SIGNED, signed.as_bytes()].concat());
        Manifest::read(format!("{signed}signature {}\n", hex(&signature)).as_bytes())
    }

    #[test]
    fn a_manifest_reads_back_and_names_itself() {
        let manifest = sample();
        assert_eq!(Manifest::read(&manifest.to_bytes(&SEED)), Ok(manifest.clone()));
        assert_eq!((manifest.id(), manifest.bytes()), ("03030303-17".into(), 30));
        assert_eq!(changed("number 17", "number 18").unwrap().number, 18);
    }

    #[test]
    fn what_is_not_as_it_should_be_is_named() {
        for (from, to, word) in [
            ("millrace-backup 1", "millrace-backup 2", "another version"),
            ("millrace-backup 1", "hello", "no manifest"),
            ("number 17", "number 017", "number"),
            ("number 17", "number +17", "number"),
            ("schema 4", "schema 99999999999", "schema"),
            ("file db/000012.sst", "file ../escape", "name"),
            ("file db/000012.sst", "file /etc/passwd", "name"),
            ("file db/000012.sst", "file db/a/b", "name"),
            ("file db/000012.sst", "file db/..", "name"),
            ("file db/000012.sst", "file master.key", "name"),
            ("file db/000012.sst", "file a", "name"),
            ("db/000012.sst 30", "db/000012.sst 31", "not as long"),
            ("end 2 2", "end 2 3", "missing"),
            ("end 2 2\n", "", "not known"),
            ("part 01", "part 0G", "digits"),
            ("channels.sealed 0", "channels.sealed 1", "not as long"),
            ("keep 09", "kept 09", "not known"),
        ] {
            let why = changed(from, to).expect_err(to);
            assert!(why.contains(word), "{to}: {why}");
        }
        let twice = "file db/000012.sst 0 0000000000000000000000000000000000000000000000000000000000000000\nkeep";
        assert!(changed("keep", twice).is_err_and(|why| why.contains("order")));
    }

    #[test]
    fn a_changed_or_foreign_signature_is_noticed() {
        let bytes = sample().to_bytes(&SEED);
        for at in (0..bytes.len()).step_by(7) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(Manifest::read(&flipped).is_err(), "{at}");
            assert!(Manifest::read(&bytes[..at]).is_err(), "{at}");
        }
        // Another key's signature under the name of this one.
        let forged = sample().to_bytes(&[2; 32]);
        assert_eq!(Manifest::read(&forged), Err("its signature does not fit: it was changed"));
        assert!(Manifest::read(&[&bytes[..], b"more\n"].concat()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(noise in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..900) {
            let _ = Manifest::read(&noise);
            let text = text();
            let head = &text.as_bytes()[..cut.min(text.len())];
            let _ = Manifest::read(&[head, &noise].concat());
        }
    }
}
