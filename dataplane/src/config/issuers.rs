//! Trusted issuers: `[[issuer]]` tables become checked options.

use std::collections::HashSet;

use millrace_proto::id::TenantId;
use millrace_proto::limits::NAME_BYTES_MAX;
use millrace_proto::record::{SCOPE_CHAT, scope_bit, scope_names};

use super::layers::RawTable;
use super::units;
use crate::identity::issuers::{ISSUERS_MAX, IssuerOptions};
use crate::trouble::Trouble;

/// Longest part of an issuer that becomes part of user names.
const ISSUER_BYTES_MAX: usize = NAME_BYTES_MAX / 2;

pub(super) fn check(raws: &[RawTable]) -> Result<Vec<IssuerOptions>, Trouble> {
    if let Some(raw) = raws.get(ISSUERS_MAX) {
        return Err(refuse(raw, raw.line, "is one too many", &format!("at most {ISSUERS_MAX} issuers are trusted")));
    }
    let mut seen = HashSet::new();
    let mut issuers = Vec::with_capacity(raws.len());
    for raw in raws {
        let issuer = issuer(raw)?;
        if !seen.insert(issuer.issuer.clone()) {
            return Err(refuse(raw, raw.line, "is there twice", "each issuer has one table"));
        }
        issuers.push(issuer);
    }
    Ok(issuers)
}

fn issuer(raw: &RawTable) -> Result<IssuerOptions, Trouble> {
    let needed = |key: &str| {
        let missing = || refuse(raw, raw.line, &format!("has no `{key}`"), "issuer, jwks_url and audience are needed");
        one(raw, key)?.ok_or_else(missing)
    };
    let (issuer, line) = needed("issuer")?;
    let issuer = identifier(issuer).map_err(|why| refuse(raw, line, &format!("has the issuer {issuer:?}"), &why))?;
    let (jwks_url, line) = needed("jwks_url")?;
    let jwks_url = secure_url(jwks_url).map_err(|why| refuse(raw, line, &format!("has {jwks_url:?}"), &why))?;
    let (audience, _) = needed("audience")?;
    let tenant = match one(raw, "tenant")? {
        None => TenantId::DEFAULT,
        Some((text, line)) => match units::whole(text, 1, u64::from(u32::MAX)) {
            Ok(number) => TenantId(number as u32),
            Err(why) => return Err(refuse(raw, line, &format!("has the tenant {text:?}"), &why)),
        },
    };
    let scopes = match raw.values.get("scopes") {
        None => SCOPE_CHAT,
        Some((names, line)) => names.iter().try_fold(0, |scopes, name| {
            let known = || format!("known are {}", scope_names(u32::MAX).join(", "));
            let bit = scope_bit(name)
                .ok_or_else(|| refuse(raw, *line, &format!("has the unknown scope {name:?}"), &known()))?;
            Ok(scopes | bit)
        })?,
    };
    Ok(IssuerOptions {
        issuer: issuer.to_owned(),
        jwks_url: jwks_url.to_owned(),
        audience: audience.to_owned(),
        tenant,
        scopes,
    })
}

fn one<'a>(raw: &'a RawTable, key: &str) -> Result<Option<(&'a str, usize)>, Trouble> {
    match raw.values.get(key) {
        None => Ok(None),
        Some((texts, line)) if texts.len() == 1 && !texts[0].is_empty() => Ok(Some((&texts[0], *line))),
        Some((_, line)) => Err(refuse(raw, *line, &format!("has a wrong `{key}`"), "one value belongs there")),
    }
}

fn refuse(raw: &RawTable, line: usize, what: &str, why: &str) -> Trouble {
    let file = raw.file.display();
    Trouble::new(format!("the issuer in line {line} of {file} {what}"), why, "correct that line")
}

/// An issuer identifier (RFC 8414 section 2): https without query and fragment; http for this machine alone.
pub(super) fn identifier(text: &str) -> Result<&str, String> {
    let text = secure_url(text)?;
    if text.contains(['?', '#']) || text.ends_with('/') {
        return Err("an issuer has no query, no fragment and no slash at its end".into());
    }
    if text.len() > ISSUER_BYTES_MAX {
        return Err(format!("an issuer has at most {ISSUER_BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// A URL that nobody on the way can change: https, or http on this machine.
fn secure_url(text: &str) -> Result<&str, String> {
    let rest = match text.split_once("://") {
        Some(("https", rest)) => rest,
        Some(("http", rest)) if is_this_machine(rest) => rest,
        Some(("http", _)) => return Err("plain http is taken from this machine only; write https".into()),
        _ => return Err("write an https:// URL".into()),
    };
    if rest.is_empty() || rest.starts_with('/') || rest.contains([' ', '@', '\\']) {
        return Err("write a URL with a host and without user name and password".into());
    }
    Ok(text)
}

fn is_this_machine(rest: &str) -> bool {
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use millrace_proto::record::SCOPE_OPERATE;

    use super::super::layers::parse;
    use super::*;

    fn read(text: &str) -> Result<Vec<IssuerOptions>, Trouble> {
        check(&parse(text, Path::new("millrace.toml"))?.issuers)
    }

    #[test]
    fn an_issuer_is_read_with_its_defaults() {
        let base = "[[issuer]]\nissuer = \"https://login.example\"\njwks_url = \"https://login.example/keys\"\naudience = \"millrace\"\n";
        let read_one = |more: &str| read(&format!("{base}{more}")).map(|mut issuers| issuers.remove(0));
        let plain = read_one("").expect("complete");
        assert_eq!((plain.tenant, plain.scopes), (TenantId::DEFAULT, SCOPE_CHAT));
        let full = read_one("tenant = 7\nscopes = [\"chat\", \"operate\"]\n").expect("complete");
        assert_eq!((full.tenant, full.scopes), (TenantId(7), SCOPE_CHAT | SCOPE_OPERATE));
        for (wrong, part) in
            [("scopes = [\"root\"]", "root"), ("tenant = 0", "tenant"), ("url = \"x\"", "url"), (base, "twice")]
        {
            let text = read_one(wrong).expect_err(wrong).to_string();
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn what_could_be_changed_on_the_way_is_refused() {
        for good in [
            "https://a.example",
            "https://a.example/tenant/7",
            "http://127.0.0.1:8080",
            "http://[::1]:9",
            "http://localhost",
        ] {
            identifier(good).expect(good);
        }
        for bad in [
            "",
            "a.example",
            "http://a.example",
            "https://",
            "https:///x",
            "https://u@a.example",
            "https://a.example/",
            "https://a.example?x",
            "https://a.example#x",
            "http://127.0.0.1.evil.example",
            "http://localhost.evil.example",
            "ftp://a.example",
        ] {
            identifier(bad).expect_err(bad);
        }
    }
}
