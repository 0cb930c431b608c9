//! Readers of single values: each says what it takes when it does not take something.

use std::time::Duration;

/// Bytes from `512MiB`, `4GiB`, `1.5G`, `4096` (bytes) or `70%` of `whole`.
pub(super) fn bytes(text: &str, whole: u64) -> Result<u64, String> {
    let text = text.trim();
    let form = "write a size such as `4GiB`, `512MiB`, or a share such as `70%`";
    if let Some(percent) = text.strip_suffix('%') {
        let share: f64 = percent.trim().parse().map_err(|_| form.to_owned())?;
        if !(share > 0.0 && share <= 100.0) {
            return Err("a share lies above 0 % and up to 100 %".into());
        }
        return Ok((whole as f64 * share / 100.0) as u64);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..digits].parse().map_err(|_| form.to_owned())?;
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "kb" => 1_000,
        "m" | "mib" => 1 << 20,
        "mb" => 1_000_000,
        "g" | "gib" => 1 << 30,
        "gb" => 1_000_000_000,
        "t" | "tib" => 1 << 40,
        _ => return Err(form.into()),
    };
    let bytes = number * unit as f64;
    if !bytes.is_finite() || bytes < 0.0 || bytes > u64::MAX as f64 / 2.0 {
        return Err("the size is out of range".into());
    }
    Ok(bytes as u64)
}

/// A duration from `500ms`, `30s`, `2m`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let form = "write a time with its unit, such as `500ms`, `30s`, `2m` or `1h`";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| form.to_owned())?;
    let millis = match text[digits..].trim() {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(form.into()),
    };
    millis.map(Duration::from_millis).ok_or_else(|| "the time is out of range".to_owned())
}

/// A whole number within `min..=max`.
pub(super) fn whole(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let form = || format!("write a whole number from {min} to {max}");
    let number: u64 = text.trim().replace('_', "").parse().map_err(|_| form())?;
    if number < min || number > max { Err(form()) } else { Ok(number) }
}

/// Bytes as people read them.
pub fn human_bytes(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", value / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", value / 1_048_576.0),
        _ => format!("{:.2} GiB", value / 1_073_741_824.0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_shares_and_times_are_read() {
        assert_eq!(bytes("4GiB", 0), Ok(4 << 30));
        assert_eq!(bytes("1.5G", 0), Ok(3 << 29));
        assert_eq!(bytes("512 MiB", 0), Ok(512 << 20));
        assert_eq!(bytes("70%", 1000), Ok(700));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(whole("8_192", 1, 10_000), Ok(8192));
        for bad in ["", "x", "5 apples", "-1", "101%", "0%", "NaN", "1e9GiB"] {
            assert!(bytes(bad, 1000).is_err(), "{bad}");
        }
        for bad in ["", "30", "s", "1.5s", "-1s", "99999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(whole("9", 1, 8), Err("write a whole number from 1 to 8".into()));
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in ".{0,24}") {
            let _ = bytes(&text, 1 << 34);
            let _ = duration(&text);
            let _ = whole(&text, 0, 10);
        }

        #[test]
        fn whole_mebibytes_read_back(mib in 0u64..1 << 20) {
            prop_assert_eq!(bytes(&format!("{mib}MiB"), 0), Ok(mib << 20));
        }
    }
}
