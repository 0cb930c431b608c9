//! The chat page: three files without a build step, embedded into the binary.
//!
//! The page needs nothing from elsewhere and holds no inline script or style, so the gateway can serve it under
//! a strict content security policy.

const FILES: [(&str, &str, &str); 4] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/console/app.js", "text/javascript; charset=utf-8", include_str!("app.js")),
    ("/console/app.css", "text/css; charset=utf-8", include_str!("app.css")),
    ("/console/icon.svg", "image/svg+xml", include_str!("icon.svg")),
];

/// The content type and bytes of a path of the page.
pub fn asset(path: &str) -> Option<(&'static str, &'static [u8])> {
    let path = if path == "/favicon.ico" { "/console/icon.svg" } else { path };
    FILES.iter().find(|(known, _, _)| *known == path).map(|(_, kind, text)| (*kind, text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_names_is_served_and_nothing_else() {
        let (_, page) = asset("/").unwrap();
        let page = std::str::from_utf8(page).unwrap();
        let mut named = 0;
        for part in page.split(['"', '\'']).filter(|part| part.starts_with("/console/")) {
            assert!(asset(part).is_some(), "{part}");
            named += 1;
        }
        assert!(named >= 3, "{named}");
        assert!(asset("/console/../secret").is_none() && asset("/console/").is_none());
    }

    #[test]
    fn the_page_obeys_its_own_policy() {
        let (_, page) = asset("/").unwrap();
        let page = std::str::from_utf8(page).unwrap();
        for forbidden in ["<script>", "style=", "onclick=", "onload=", "http://", "https://", "javascript:"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        let (_, script) = asset("/console/app.js").unwrap();
        let script = std::str::from_utf8(script).unwrap();
        for forbidden in ["innerHTML", "eval(", "document.write", "localStorage"] {
            assert!(!script.contains(forbidden), "{forbidden}");
        }
    }
}
