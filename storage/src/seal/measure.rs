//! What sealing costs on this machine: the real path of a row, without the disk.

use super::{DataKey, NonceSource, Stamp, Suite};
use crate::backend::Cf;
use millrace_proto::id::UserId;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// The time that sealing `rounds` values of `value_bytes` takes on the calling thread, with the nonce, the header, the
/// place as associated data and the allocation that every row pays.
pub fn measure_seal(suite: Suite, value_bytes: usize, rounds: u32) -> std::io::Result<Duration> {
    let random = |error: getrandom::Error| std::io::Error::other(error.to_string());
    let mut key = zeroize::Zeroizing::new([0; 32]);
    getrandom::fill(&mut key[..]).map_err(random)?;
    let (data_key, nonces) = (DataKey::new(suite, &key), NonceSource::new().map_err(random)?);
    let stamp = Stamp { epoch: 1, owner: UserId([7; 16]) };
    // As long as the key of a message.
    let (place, plain) = ([3; 30], vec![0x5a; value_bytes]);
    let started = Instant::now();
    for _ in 0..rounds {
        black_box(data_key.seal(&nonces, stamp, Cf::Msg, black_box(&place), black_box(&plain)));
    }
    Ok(started.elapsed())
}
