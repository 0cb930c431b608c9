//! Where the load goes.

use anyhow::{Context, bail};
use std::net::{SocketAddr, ToSocketAddrs};

/// A resolved target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Address to connect to.
    pub address: SocketAddr,
    /// Value of the `Host` header.
    pub host: String,
}

impl Target {
    /// Reads `http://host[:port]` and resolves it. A host that is not this machine is refused unless
    /// `allow_remote`: a load generator pointed at the wrong machine is an attack.
    pub fn resolve(url: &str, allow_remote: bool) -> anyhow::Result<Self> {
        let Some(rest) = url.strip_prefix("http://") else {
            bail!("the target {url:?} does not begin with http:// (TLS is not spoken by this tool)");
        };
        let host = rest.strip_suffix('/').unwrap_or(rest);
        if host.is_empty() || host.contains(['/', '?', '#', '@', ' ']) {
            bail!("the target {url:?} must be http://HOST or http://HOST:PORT without a path");
        }
        let after_bracket = host.rsplit_once(']').map_or(host, |(_, after)| after);
        let with_port = if after_bracket.contains(':') { host.to_owned() } else { format!("{host}:80") };
        let addresses: Vec<SocketAddr> =
            with_port.to_socket_addrs().with_context(|| format!("cannot resolve the target {url:?}"))?.collect();
        let Some(address) = addresses.first() else { bail!("the target {url:?} has no address") };
        if !allow_remote && !addresses.iter().all(|address| address.ip().is_loopback()) {
            bail!(
                "the target {url:?} is {}, which is not this machine; \
                 add --allow-remote only if its owner agreed to be loaded",
                address.ip()
            );
        }
        Ok(Self { address: *address, host: host.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_unless_told_otherwise() {
        assert_eq!(Target::resolve("http://127.0.0.1:8080", false).unwrap().address.port(), 8080);
        assert_eq!(Target::resolve("http://127.0.0.1/", false).unwrap().address.port(), 80);
        assert!(Target::resolve("http://[::1]:9", false).unwrap().address.is_ipv6());
        assert!(Target::resolve("http://[::1]", false).unwrap().address.is_ipv6());
        let error = Target::resolve("http://192.0.2.1:80", false).unwrap_err().to_string();
        assert!(error.contains("--allow-remote"), "{error}");
        assert!(Target::resolve("http://192.0.2.1:80", true).is_ok());
        for bad in [
            "",
            "127.0.0.1",
            "https://127.0.0.1",
            "http://",
            "http://a b",
            "http://127.0.0.1/x",
            "http://u@127.0.0.1",
            "http://127.0.0.1:99999",
        ] {
            assert!(Target::resolve(bad, true).is_err(), "{bad:?}");
        }
    }
}
