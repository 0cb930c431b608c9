//! The modes of operation that vectors use and the product does not, made of the raw block cipher.

use super::super::Sm4;

pub(super) type Block = [u8; 16];

pub(super) fn one(cipher: &Sm4, block: &Block) -> Block {
    let mut out = *block;
    cipher.encrypt_blocks(&mut out);
    out
}

fn xor(a: &Block, b: &[u8]) -> Block {
    std::array::from_fn(|at| a[at] ^ b.get(at).copied().unwrap_or(0))
}

pub(super) fn cbc_encrypt(cipher: &Sm4, iv: &Block, text: &[u8]) -> Vec<u8> {
    let mut last = *iv;
    text.chunks(16)
        .flat_map(|block| {
            last = one(cipher, &xor(&last, block));
            last
        })
        .collect()
}

pub(super) fn cbc_decrypt(cipher: &Sm4, iv: &Block, text: &[u8]) -> Vec<u8> {
    let mut plain = text.to_vec();
    cipher.decrypt_blocks(&mut plain);
    let before = iv.iter().chain(text);
    plain.iter().zip(before).map(|(byte, before)| byte ^ before).collect()
}

/// CFB with 128 bits (`feed_cipher`) and OFB (`!feed_cipher`).
pub(super) fn feedback(cipher: &Sm4, iv: &Block, text: &[u8], feed_cipher: bool) -> Vec<u8> {
    let mut state = *iv;
    text.chunks(16)
        .flat_map(|block| {
            let stream = one(cipher, &state);
            let out = xor(&stream, block);
            state = if feed_cipher { out } else { stream };
            out[..block.len()].to_vec()
        })
        .collect()
}

pub(super) fn ctr(cipher: &Sm4, iv: &Block, text: &[u8]) -> Vec<u8> {
    let first = u128::from_be_bytes(*iv);
    text.chunks(16)
        .enumerate()
        .flat_map(|(at, block)| {
            let stream = one(cipher, &first.wrapping_add(at as u128).to_be_bytes());
            xor(&stream, block)[..block.len()].to_vec()
        })
        .collect()
}

/// CCM (RFC 3610): ciphertext and tag. `None` for a nonce or tag length that the mode does not know.
pub(super) fn ccm(cipher: &Sm4, nonce: &[u8], aad: &[u8], text: &[u8], tag_bytes: usize) -> Option<(Vec<u8>, Vec<u8>)> {
    if !(7..=13).contains(&nonce.len()) || !matches!(tag_bytes, 4 | 6 | 8 | 10 | 12 | 14 | 16) {
        return None;
    }
    let length_bytes = 15 - nonce.len();
    let block = |flags: u8, number: u64| -> Block {
        let mut block = [0; 16];
        block[8..].copy_from_slice(&number.to_be_bytes());
        block[0] = flags;
        block[1..=nonce.len()].copy_from_slice(nonce);
        block
    };
    let flags = u8::from(!aad.is_empty()) << 6 | ((tag_bytes as u8 - 2) / 2) << 3 | (length_bytes as u8 - 1);
    let mut mac = one(cipher, &block(flags, text.len() as u64));
    let mut authenticated = Vec::new();
    if !aad.is_empty() {
        match u16::try_from(aad.len()) {
            Ok(short) if short < 0xff00 => authenticated.extend(short.to_be_bytes()),
            _ => {
                authenticated.extend([0xff, 0xfe]);
                authenticated.extend((aad.len() as u32).to_be_bytes());
            }
        }
        authenticated.extend(aad);
    }
    for part in authenticated.chunks(16).chain(text.chunks(16)) {
        mac = one(cipher, &xor(&mac, part));
    }
    let counter = |number| block(length_bytes as u8 - 1, number);
    let tag = xor(&one(cipher, &counter(0)), &mac)[..tag_bytes].to_vec();
    Some((ctr(cipher, &counter(1), text), tag))
}
