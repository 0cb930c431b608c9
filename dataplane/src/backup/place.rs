//! Places of backups: `s3://bucket/prefix`, `file:///folder`, or the path of a folder.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use millrace_storage::{Folder, Target};

use super::s3::S3;
use crate::control::Control;

/// A place as it is written in settings and commands, checked for its shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A folder, by its absolute path.
    Folder(String),
    /// A bucket of the S3 API and a prefix in it, which may be empty.
    S3 {
        /// The bucket.
        bucket: String,
        /// What all names begin with.
        prefix: String,
    },
}

impl Place {
    /// Reads a place. A relative path is one of this process's folder, when `relative` says so, else refused.
    pub fn parse(text: &str, relative: bool) -> Result<Self, String> {
        let form = "write a folder (/path or file:///path), or s3://bucket/prefix";
        let text = text.trim();
        if text.chars().any(char::is_control) {
            return Err(form.into());
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            if bucket.is_empty() || bucket.len() > 255 || !bucket.chars().all(plain) {
                return Err(format!("{bucket:?} is no name of a bucket; {form}"));
            }
            let prefix = prefix.trim_matches('/');
            let parts = || prefix.split('/').filter(|_| !prefix.is_empty());
            if parts().any(|part| part.is_empty() || part == "." || part == ".." || !part.chars().all(plain)) {
                return Err("a prefix has letters, digits, `-`, `_` and `.` between its `/`".into());
            }
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() });
        }
        let path = match text.strip_prefix("file://") {
            Some(path) => path,
            None if text.contains("://") => return Err(format!("only folders and S3 buckets are known; {form}")),
            None => text,
        };
        if path.is_empty() {
            return Err(form.into());
        }
        if Path::new(path).is_absolute() {
            return Ok(Self::Folder(path.to_owned()));
        }
        if !relative {
            return Err(format!("{path:?} is not an absolute path; {form}"));
        }
        let whole = std::path::absolute(path).map_err(|error| format!("{path:?} has no whole path: {error}"))?;
        Ok(Self::Folder(whole.to_string_lossy().into_owned()))
    }

    /// The place as a URL without secrets; the same as [`Target::place`] of what [`Place::open`] answers.
    pub fn url(&self) -> String {
        match self {
            Self::Folder(path) => format!("file://{path}"),
            Self::S3 { bucket, prefix } if prefix.is_empty() => format!("s3://{bucket}"),
            Self::S3 { bucket, prefix } => format!("s3://{bucket}/{prefix}"),
        }
    }

    /// The target at this place. Reads keys from the environment and touches nothing yet. `stopped` cuts calls off.
    pub fn open(&self, control: &Control, stopped: Arc<AtomicBool>) -> Result<Box<dyn Target>, String> {
        Ok(match self {
            Self::Folder(path) => Box::new(Folder::new(path)),
            Self::S3 { bucket, prefix } => Box::new(S3::open(bucket, prefix, self.url(), control, stopped)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_said_again() {
        for (text, url) in [
            ("/var/backups", "file:///var/backups"),
            ("file:///a folder/b", "file:///a folder/b"),
            ("s3://bucket", "s3://bucket"),
            ("s3://bucket/", "s3://bucket"),
            (" s3://bucket.eu/a/b-1/ ", "s3://bucket.eu/a/b-1"),
        ] {
            let place = Place::parse(text, false).expect(text);
            assert_eq!(place.url(), url);
            assert_eq!(Place::parse(url, false), Ok(place), "a place in the store is read again");
        }
        for text in ["", "backups", "s3://", "s3:///x", "s3://b/../x", "s3://b/a//b", "s3://b u", "http://x/y", "/a\nb"]
        {
            assert!(Place::parse(text, false).is_err(), "{text:?}");
        }
        let here = Place::parse("backups", true).expect("a relative path");
        assert!(here.url().starts_with("file:///") && here.url().ends_with("/backups"), "{}", here.url());
    }
}
