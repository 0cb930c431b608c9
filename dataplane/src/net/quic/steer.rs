//! Which shard a datagram belongs to.
//!
//! The kernel would spread the datagrams of a shared UDP port by address and port, so a client whose address
//! changes (a phone that leaves its network, a NAT that forgets) would land on a shard that does not know it.
//! Instead a small program on the port reads the first byte of the destination connection id and takes it modulo the
//! number of shards; [`ShardIds`] hands out ids whose first byte says their shard. A client's first id is random,
//! so new connections spread evenly.
#![allow(unsafe_code)]

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use quinn::{ConnectionId, ConnectionIdGenerator};

/// Shards that one byte can tell apart.
pub(super) const SHARDS_MAX: usize = 256;

/// Length of the ids of this server.
const ID_BYTES: usize = 8;

/// Makes ids that lead to one shard.
pub(super) struct ShardIds {
    shard: usize,
    shards: usize,
}

impl ShardIds {
    pub(super) fn new(shard: usize, shards: usize) -> Self {
        assert!(shard < shards && shards <= SHARDS_MAX, "shard {shard} of {shards}");
        Self { shard, shards }
    }

    /// The byte nearest to `random` that leads to the shard.
    fn first(&self, random: u8) -> u8 {
        let base = usize::from(random) / self.shards * self.shards + self.shard;
        let byte = if base > usize::from(u8::MAX) { base - self.shards } else { base };
        byte as u8
    }
}

impl ConnectionIdGenerator for ShardIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0u8; ID_BYTES];
        // Without randomness no TLS key could have been made either.
        getrandom::fill(&mut id).expect("the system has random numbers");
        id[0] = self.first(id[0]);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
const JUMP_IF_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const MODULO: u16 = (libc::BPF_ALU | BPF_MOD | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | BPF_A) as u16;
/// Values of `linux/filter.h` and `linux/bpf_common.h`.
const BPF_MOD: u32 = 0x90;
const BPF_A: u32 = 0x10;

/// RFC 9000 section 17.2: the first bit of a long header; its destination id starts after flags, version and length.
const LONG_HEADER: u32 = 0x80;
const LONG_ID_AT: u32 = 6;
/// RFC 9000 section 17.3: in a short header it follows the flags.
const SHORT_ID_AT: u32 = 1;

/// The program: socket = first byte of the destination id modulo the number of shards. A datagram too short for
/// it goes to the first socket, where quinn drops it.
fn program(shards: usize) -> [libc::sock_filter; 7] {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        step(LOAD_BYTE, 0, 0, 0),
        step(JUMP_IF_SET, 0, 2, LONG_HEADER),
        step(LOAD_BYTE, 0, 0, LONG_ID_AT),
        step(JUMP, 0, 0, 1),
        step(LOAD_BYTE, 0, 0, SHORT_ID_AT),
        step(MODULO, 0, 0, shards as u32),
        step(RETURN, 0, 0, 0),
    ]
}

/// Steers the port of `socket` and of the others that share it, in the order in which they were bound.
pub(super) fn attach(socket: &UdpSocket, shards: usize) -> io::Result<()> {
    let mut program = program(shards);
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: setsockopt reads `size_of::<sock_fprog>()` bytes at `filter` and the instructions that it points to;
    // both live until the call returns, and the kernel keeps a checked copy of its own.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const filter).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::quic::bind;

    #[test]
    fn every_id_leads_to_its_shard() {
        for shards in [1, 2, 3, 7, 100, 255, 256] {
            for shard in 0..shards {
                let ids = ShardIds::new(shard, shards);
                for random in 0..=u8::MAX {
                    assert_eq!(usize::from(ids.first(random)) % shards, shard, "{random} of {shards}");
                }
                assert_eq!(usize::from(ShardIds::new(shard, shards).generate_cid()[0]) % shards, shard);
            }
        }
    }

    #[test]
    fn datagrams_reach_the_socket_that_their_id_names_from_any_address() {
        let sockets = bind("127.0.0.1:0".parse().expect("an address"), 3).expect("bound").sockets;
        let address = sockets[0].local_addr().expect("an address");
        sockets.iter().for_each(|socket| {
            socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("set");
            socket.set_nonblocking(false).expect("set");
        });
        for first in 0..60u8 {
            // A port of its own for each: the address says nothing about the shard.
            let sender = UdpSocket::bind("127.0.0.1:0").expect("bound");
            let long = [0xc0, 0, 0, 0, 1, 8, first, 9, 9, 9, 9, 9, 9, 9, first];
            let short = [0x40, first, 9, 9, 9, 9, 9, 9, 9, first];
            for datagram in [&long[..], &short[..]] {
                sender.send_to(datagram, address).expect("sent");
                let mut room = [0u8; 64];
                let socket = &sockets[usize::from(first) % sockets.len()];
                let (length, _) = socket.recv_from(&mut room).expect("the datagram is here");
                assert_eq!(&room[..length], datagram);
            }
        }
    }
}
