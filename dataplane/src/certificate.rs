//! Certificates as files: what the one in use says, and one for this machine when none is there.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use x509_parser::pem::Pem;

use crate::config::TlsOptions;
use crate::trouble::Trouble;

/// How long a certificate made here is valid: what browsers still take.
const VALID_DAYS: u32 = 397;

/// A certificate made here is replaced at a start when fewer days than this are left.
const RENEW_DAYS: u64 = 30;

/// What a certificate says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its subject.
    pub subject: String,
    /// Unix seconds of its end.
    pub until_s: u64,
    /// It vouches for itself.
    pub self_signed: bool,
}

impl Facts {
    /// Whole days until its end; 0 when it is over.
    pub fn days_left(&self) -> u64 {
        self.until_s.saturating_sub(unix_s()) / 86_400
    }
}

/// Reads the first certificate of a PEM file.
pub fn inspect(path: &Path) -> Result<Facts, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let pem = Pem::iter_from_buffer(&text).next().ok_or("it holds no certificate")?;
    let pem = pem.map_err(|error| format!("it is not PEM: {error}"))?;
    let certificate = pem.parse_x509().map_err(|error| format!("it is no certificate: {error}"))?;
    Ok(Facts {
        subject: certificate.subject().to_string(),
        until_s: u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0),
        self_signed: certificate.subject() == certificate.issuer(),
    })
}

/// Makes certificate and key for this machine unless usable ones of an earlier start are there. Says whether
/// it made them.
pub fn ensure_self_signed(options: &TlsOptions) -> Result<bool, Trouble> {
    let files = &options.files;
    let fresh = inspect(&files.certificate).is_ok_and(|facts| facts.days_left() > RENEW_DAYS);
    if fresh && files.key.is_file() {
        return Ok(false);
    }
    let trouble = |why: String| {
        let next = "check the data folder's owner and space, or name files with tls.certificate and tls.key";
        Trouble::new("a self-signed certificate cannot be made", why, next)
    };
    let (certificate, key) = make(options).map_err(|error| trouble(error.to_string()))?;
    let written = || -> std::io::Result<()> {
        if let Some(folder) = files.certificate.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write(&files.key, &key, 0o600)?;
        write(&files.certificate, &certificate, 0o644)
    };
    written().map_err(|error| trouble(error.to_string()))?;
    Ok(true)
}

fn make(options: &TlsOptions) -> Result<(String, String), rcgen::Error> {
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let ip = options.listen.ip();
    if !ip.is_unspecified() && !ip.is_loopback() {
        names.push(ip.to_string());
    }
    if let Ok(host) = std::fs::read_to_string("/proc/sys/kernel/hostname") {
        let host = host.trim().to_ascii_lowercase();
        let plain = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
        if plain && !names.contains(&host) {
            names.push(host);
        }
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "Millrace, self-signed");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    // A day back: clocks of clients may be slow.
    let start = SystemTime::now() - Duration::from_secs(86_400);
    params.not_before = start.into();
    params.not_after = (start + Duration::from_secs(u64::from(VALID_DAYS) * 86_400)).into();
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), key.serialize_pem()))
}

/// Written beside its place and moved there, so that nobody reads half of it.
fn write(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let beside = path.with_extension("new");
    let _ = std::fs::remove_file(&beside);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::net::tls::{Tls, TlsFiles};

    #[test]
    fn a_made_certificate_is_kept_usable_and_its_key_private() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = TlsFiles {
            certificate: folder.path().join("tls/certificate.pem"),
            key: folder.path().join("tls/key.pem"),
            client_ca: None,
            client_required: false,
        };
        let listen = "192.0.2.7:8443".parse().expect("an address");
        let options = TlsOptions { listen, files: files.clone(), self_signed: true, quic: true };
        assert_eq!(ensure_self_signed(&options).ok(), Some(true));
        let facts = inspect(&files.certificate).expect("readable");
        assert!(facts.self_signed && (300..VALID_DAYS.into()).contains(&facts.days_left()), "{facts:?}");
        let mode = std::fs::metadata(&files.key).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        Tls::open(files.clone()).expect("they fit together");
        assert_eq!(ensure_self_signed(&options).ok(), Some(false), "kept by the next start");
        std::fs::write(&files.certificate, "damaged").expect("written");
        assert_eq!(ensure_self_signed(&options).ok(), Some(true), "made again");
        assert!(inspect(&files.key).is_err() && inspect(folder.path()).is_err());
    }
}
