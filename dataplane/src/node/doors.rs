//! The sockets of a node, and the certificate of its TLS port.

use std::path::Path;
use std::sync::Arc;

use super::in_parts;
use crate::certificate;
use crate::config::Config;
use crate::handover::Inherited;
use crate::net::tls::Tls;
use crate::net::{self, Listeners, QuicSockets};
use crate::trouble::Trouble;

/// How many ports are tried for one that is free on TCP and UDP, when the system chooses.
const PORT_TRIES_MAX: u32 = 8;

/// The sockets of a node.
pub(super) struct Doors {
    pub plain: Listeners,
    pub secure: Option<Secure>,
}

/// What the TLS port needs.
pub(super) struct Secure {
    pub listeners: Listeners,
    /// The UDP sockets beside it, when QUIC is served.
    pub quic: Option<QuicSockets>,
    pub tls: Arc<Tls>,
}

/// Binds the TLS port and reads its certificate, if there is to be one.
pub(super) fn open_tls(config: &Config, inherited: &mut Inherited) -> Result<Option<Secure>, Trouble> {
    let Some(options) = &config.tls else { return Ok(None) };
    if options.self_signed && certificate::ensure_self_signed(options)? {
        let path = options.files.certificate.display();
        tracing::warn!(%path, "made a self-signed certificate: clients must be told to trust it");
    }
    let tls = Tls::open(options.files.clone()).map_err(|error| in_parts(&error))?;
    tell_certificate(&options.files.certificate);
    let tls = Arc::new(tls);
    let mut tries = PORT_TRIES_MAX;
    loop {
        let listeners = match inherited.secure(options.listen, config.workers) {
            Some(listeners) => listeners,
            None => net::listen(options.listen, config.workers).map_err(|error| in_parts(&error))?,
        };
        if !options.quic {
            return Ok(Some(Secure { listeners, quic: None, tls }));
        }
        if let Some(quic) = inherited.quic(listeners.address, config.workers) {
            return Ok(Some(Secure { listeners, quic: Some(quic), tls }));
        }
        match net::bind_quic(listeners.address, config.workers) {
            Ok(quic) => return Ok(Some(Secure { listeners, quic: Some(quic), tls })),
            // The port that the system chose for TCP has another owner on UDP: it may choose again.
            Err(_) if options.listen.port() == 0 && tries > 1 => tries -= 1,
            Err(error) => return Err(in_parts(&error)),
        }
    }
}

pub(super) fn tell_certificate(path: &Path) {
    match certificate::inspect(path) {
        Ok(facts) if facts.days_left() == 0 => tracing::error!(subject = facts.subject, "the certificate has expired"),
        Ok(facts) => tracing::info!(subject = facts.subject, days_left = facts.days_left(), "certificate in use"),
        Err(why) => tracing::warn!(why, "the certificate's dates cannot be read"),
    }
}
