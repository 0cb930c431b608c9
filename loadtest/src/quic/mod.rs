//! Clients over QUIC: `millrace/1` ([`NativeClient`]) and the part of HTTP/3 that load needs ([`H3Client`]).

mod h3;
mod native;

pub use h3::{H3Client, H3Request};
pub use native::{NativeClient, NativeStream};

use anyhow::{Context, bail};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::rustls::pki_types::CertificateDer;
use quinn::rustls::pki_types::pem::PemObject;
use quinn::rustls::{self, RootCertStore};
use quinn::{ClientConfig, Connection, Endpoint};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

/// Bytes that one read takes at most.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Makes connections of one protocol to one server.
pub struct Dialer {
    endpoint: Endpoint,
    address: SocketAddr,
    server_name: String,
}

impl Dialer {
    /// Trusts the certificates in the PEM file `trusted`; must be called inside a Tokio runtime.
    pub fn new(address: SocketAddr, server_name: &str, trusted: &Path, protocol: &[u8]) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        let certificates =
            CertificateDer::pem_file_iter(trusted).with_context(|| format!("cannot read {}", trusted.display()))?;
        for certificate in certificates {
            roots.add(certificate.context("malformed PEM")?).context("a certificate cannot be trusted")?;
        }
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![protocol.to_vec()];
        let unspecified = match address {
            SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
            SocketAddr::V6(_) => SocketAddr::from(([0u16; 8], 0)),
        };
        let mut endpoint = Endpoint::client(unspecified).context("no UDP socket")?;
        endpoint.set_default_client_config(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)));
        Ok(Self { endpoint, address, server_name: server_name.to_owned() })
    }

    /// Opens a connection.
    pub async fn dial(&self) -> anyhow::Result<Connection> {
        let connecting = self.endpoint.connect(self.address, &self.server_name)?;
        connecting.await.with_context(|| format!("no QUIC connection to {}", self.address))
    }

    /// Goes on from another local port: what a change of network looks like to the server.
    pub fn move_on(&self) -> anyhow::Result<()> {
        let local = self.endpoint.local_addr()?;
        let socket = std::net::UdpSocket::bind(SocketAddr::new(local.ip(), 0))?;
        self.endpoint.rebind(socket).context("cannot move")
    }
}

/// An answer that the protocol does not allow.
fn odd<T>(what: &str) -> anyhow::Result<T> {
    bail!("the server sent {what}")
}
