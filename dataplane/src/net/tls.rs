//! TLS 1.2 and 1.3 on the reactors' own reads and writes.
//!
//! rustls is a state machine without sockets: [`Session`] stands between the halves of a connection, opens
//! what was read and seals what will be written. One configuration and one ticket key serve all shards, so a
//! client resumes wherever it lands. [`Tls::reload`] swaps the configuration for later handshakes; running
//! connections keep theirs.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use super::quic;

/// First byte of every TLS record of a handshake.
const HANDSHAKE_RECORD: u8 = 0x16;

/// Room for what a handshake reads at once: a hello with post-quantum key shares has some 1.7 KiB.
const HANDSHAKE_READ_BYTES: usize = 4 * 1024;

/// Plain bytes sealed at once: one full record, so a large answer needs no second copy of itself.
pub const SEAL_BYTES: usize = 16 * 1024;

/// What a client reads that speaks plain HTTP to this port.
const SPEAK_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 50\r\n\
connection: close\r\n\r\nThis port speaks TLS. Use https:// in the address.";

/// Where certificate and key come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain as PEM, the server's own certificate first.
    pub certificate: PathBuf,
    /// Its private key as PEM.
    pub key: PathBuf,
    /// Certificates (PEM) of who may sign client certificates; `None` asks for none.
    pub client_ca: Option<PathBuf>,
    /// Refuse clients without a certificate.
    pub client_required: bool,
}

/// Certificate or key cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("TLS cannot use {}. Why: {why}. Next step: {next}", path.display())]
pub struct TlsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: String,
    /// What to do.
    pub next: &'static str,
}

/// The TLS side of a node: what new connections are given.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Current>,
    /// Counts reloads, so that others notice one without a lock.
    epoch: AtomicU64,
}

struct Current {
    config: Arc<ServerConfig>,
    quic: quinn::ServerConfig,
    ticketer: Arc<dyn ProducesTickets>,
    /// The accepted signers of client certificates: a change ends resumption of older sessions.
    client_ca: Vec<u8>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files and checks that they fit together.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let current = load(&files, None)?;
        Ok(Self { files, current: RwLock::new(current), epoch: AtomicU64::new(0) })
    }

    /// Reads the files again. On an error everything stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = {
            let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
            load(&self.files, Some(&current))?
        };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        self.epoch.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Counts reloads.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What QUIC connections are given, and the epoch that it is at least from.
    pub fn quic(&self) -> (u64, quinn::ServerConfig) {
        let epoch = self.epoch();
        (epoch, self.current.read().unwrap_or_else(PoisonError::into_inner).quic.clone())
    }

    fn config(&self) -> Arc<ServerConfig> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).config.clone()
    }
}

/// The protocols offered, the preferred first.
fn protocols() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

fn load(files: &TlsFiles, before: Option<&Current>) -> Result<Current, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = certificates(&files.certificate)?;
    let key_text = read(&files.key)?;
    let refuse = |why: String| TlsError {
        path: files.key.clone(),
        why,
        next: "give the unencrypted PEM key that belongs to the first certificate of the chain",
    };
    let key = PrivateKeyDer::from_pem_slice(&key_text).map_err(|error| refuse(format!("it is no PEM key: {error}")))?;
    let client_ca = files.client_ca.as_deref().map(read).transpose()?.unwrap_or_default();
    let ticketer = match before.filter(|before| before.client_ca == client_ca) {
        Some(before) => before.ticketer.clone(),
        None => rustls::crypto::ring::Ticketer::new().map_err(|error| refuse(error.to_string()))?,
    };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| refuse(error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(verifier(path, files.client_required, provider)?),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| refuse(error.to_string()))?;
    config.alpn_protocols = protocols();
    config.ticketer = ticketer.clone();
    // Early data could be replayed by whoever recorded it; requests here have effects.
    config.max_early_data_size = 0;
    let quic = quic::server_config(&config).map_err(refuse)?;
    Ok(Current { config: Arc::new(config), quic, ticketer, client_ca })
}

fn verifier(
    path: &Path,
    required: bool,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let refuse = |why: String| TlsError {
        path: path.to_owned(),
        why,
        next: "give the PEM certificates of the authority that signs client certificates",
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|error| refuse(error.to_string()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|error| refuse(error.to_string()))
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|error| TlsError {
        path: path.to_owned(),
        why: error.to_string(),
        next: "check the path and that this user may read the file",
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let refuse = |why: String| TlsError {
        path: path.to_owned(),
        why,
        next: "give a PEM file with `-----BEGIN CERTIFICATE-----`, the server's own certificate first",
    };
    let text = read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| refuse(format!("it is not PEM: {error}")))?;
    if chain.is_empty() { Err(refuse("it holds no certificate".into())) } else { Ok(chain) }
}

/// The established TLS state of one connection, between its two halves.
pub struct Session {
    connection: RefCell<ServerConnection>,
    /// The peer has said that nothing follows.
    closed: Cell<bool>,
}

impl Session {
    /// Opens sealed bytes and appends what they held to `plain`.
    pub fn open(&self, mut sealed: &[u8], plain: &mut Vec<u8>) -> io::Result<()> {
        let mut connection = self.connection.borrow_mut();
        while !sealed.is_empty() && !self.closed.get() {
            connection.read_tls(&mut sealed)?;
            self.process(&mut connection, plain)?;
        }
        Ok(())
    }

    /// Appends what the handshake already brought.
    pub fn take_early(&self, plain: &mut Vec<u8>) -> io::Result<()> {
        self.process(&mut self.connection.borrow_mut(), plain)
    }

    fn process(&self, connection: &mut ServerConnection, plain: &mut Vec<u8>) -> io::Result<()> {
        let state =
            connection.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let waiting = state.plaintext_bytes_to_read();
        let before = plain.len();
        plain.resize(before + waiting, 0);
        connection.reader().read_exact(&mut plain[before..])?;
        if state.peer_has_closed() {
            self.closed.set(true);
        }
        Ok(())
    }

    /// Nothing more will come out of this session.
    pub fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Seals `plain` and appends the records, with what the protocol itself has to say, to `sealed`.
    pub fn seal(&self, plain: &[u8], sealed: &mut Vec<u8>) -> io::Result<()> {
        let mut connection = self.connection.borrow_mut();
        connection.writer().write_all(plain)?;
        drain(&mut connection, sealed)
    }

    /// Appends the farewell.
    pub fn close(&self, sealed: &mut Vec<u8>) -> io::Result<()> {
        let mut connection = self.connection.borrow_mut();
        connection.send_close_notify();
        drain(&mut connection, sealed)
    }

    /// The client and the server agreed on HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.connection.borrow().alpn_protocol() == Some(b"h2")
    }
}

fn drain(connection: &mut ServerConnection, sealed: &mut Vec<u8>) -> io::Result<()> {
    while connection.wants_write() {
        connection.write_tls(sealed)?;
    }
    Ok(())
}

/// Greets a client. The caller bounds the time.
pub async fn handshake(tls: &Tls, stream: &mut TcpStream) -> io::Result<Rc<Session>> {
    let refused = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
    let mut connection = ServerConnection::new(tls.config()).map_err(refused)?;
    let mut buffer = Vec::with_capacity(HANDSHAKE_READ_BYTES);
    let mut begun = false;
    while connection.is_handshaking() || connection.wants_write() {
        if connection.wants_write() {
            say(&mut connection, stream).await?;
            continue;
        }
        buffer.clear();
        let (read, bytes) = stream.read(buffer).await;
        buffer = bytes;
        if read? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !begun && buffer[0] != HANDSHAKE_RECORD {
            if buffer[0].is_ascii_uppercase() {
                let _ = stream.write_all(SPEAK_TLS).await;
            }
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the client does not speak TLS"));
        }
        begun = true;
        let mut sealed = buffer.as_slice();
        while !sealed.is_empty() {
            connection.read_tls(&mut sealed)?;
            if let Err(error) = connection.process_new_packets() {
                // The alert tells the client why.
                let _ = say(&mut connection, stream).await;
                return Err(refused(error));
            }
        }
    }
    Ok(Rc::new(Session { connection: RefCell::new(connection), closed: Cell::new(false) }))
}

async fn say(connection: &mut ServerConnection, stream: &mut TcpStream) -> io::Result<()> {
    let mut sealed = Vec::new();
    drain(connection, &mut sealed)?;
    stream.write_all(sealed).await.0.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_plain_http_is_well_formed() {
        let text = std::str::from_utf8(SPEAK_TLS).expect("text");
        let (head, body) = text.split_once("\r\n\r\n").expect("head and body");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
    }

    #[test]
    fn unusable_files_say_what_why_and_what_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.pem");
        std::fs::write(&path, "no PEM at all").expect("written");
        let files =
            |certificate: PathBuf, key: PathBuf| TlsFiles { certificate, key, client_ca: None, client_required: false };
        let missing = Tls::open(files(folder.path().join("nothing"), path.clone())).expect_err("missing").to_string();
        assert!(missing.contains("nothing") && missing.contains("Next step"), "{missing}");
        let empty = Tls::open(files(path.clone(), path.clone())).expect_err("no certificate").to_string();
        assert!(empty.contains("no certificate"), "{empty}");
        let one = rcgen::generate_simple_self_signed(["a".to_owned()]).expect("made");
        let other = rcgen::KeyPair::generate().expect("made");
        let (chain, key) = (folder.path().join("chain"), folder.path().join("key"));
        std::fs::write(&chain, one.cert.pem()).expect("written");
        std::fs::write(&key, other.serialize_pem()).expect("written");
        let foreign = Tls::open(files(chain.clone(), key.clone())).expect_err("another key").to_string();
        assert!(foreign.contains("key"), "{foreign}");
        std::fs::write(&key, one.signing_key.serialize_pem()).expect("written");
        let tls = Tls::open(files(chain.clone(), key)).expect("they fit");
        std::fs::write(&chain, "damaged").expect("written");
        let before = tls.config();
        tls.reload().expect_err("damaged");
        assert!(Arc::ptr_eq(&before, &tls.config()), "a failed reload changes nothing");
    }
}
