// SPDX-License-Identifier: Apache-2.0
//! What a handshake message has to show before it may cost Curve25519 work (WireGuard paper, 5.3 and 5.4.7).
//!
//! Each second some are free. After them a message has to carry a cookie, which proves that its sender receives at the address
//! it names; then each address has a few, and all together have an end.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, TunnResult};

use crate::key::PublicKey;

/// Initiations a second that are answered without asking for a cookie.
pub(crate) const FREE_INITIATIONS: u64 = 100;
/// Responses: whoever forges one has to know the index that we have just sent, and a hub asks many at once.
pub(crate) const FREE_RESPONSES: u64 = 1000;
/// Messages a second of one address, or of those that share its place, beyond the free ones.
const OF_ONE_SOURCE: u8 = 20;
/// Messages a second of all addresses, beyond the free ones.
const OF_ALL_SOURCES: u64 = 1000;
/// Places in which addresses are counted.
const PLACES: usize = 1024;
/// How long what was counted counts.
const PERIOD: Duration = Duration::from_secs(1);

/// A gate for one kind of message and one key of ours.
pub(crate) struct Gate {
    cookies: RateLimiter,
    free: u64,
    admitted: u64,
    /// Beyond the free ones, by address. Its size is fixed: addresses are whatever a sender claims.
    of_source: Box<[u8; PLACES]>,
    hasher: RandomState,
    since: Option<Instant>,
}

/// What becomes of a message.
pub(crate) enum Admission<'m, 'c> {
    /// It may be worked on.
    Admitted(Packet<'m>),
    /// Its sender is to show that it receives at its address: this is the reply.
    Ask(&'c [u8]),
    /// It was not made for this key.
    Forged,
    /// Its address has had its share, or all have.
    TooMany,
}

impl Gate {
    pub(crate) fn new(own: &PublicKey, free: u64) -> Self {
        Self {
            cookies: RateLimiter::new(&own.point(), free),
            free,
            admitted: 0,
            of_source: Box::new([0; PLACES]),
            hasher: RandomState::new(),
            since: None,
        }
    }

    /// Looks at a handshake message. `cookie` has 64 bytes.
    pub(crate) fn admit<'m, 'c>(
        &mut self,
        from: IpAddr,
        message: &'m [u8],
        cookie: &'c mut [u8],
    ) -> Admission<'m, 'c> {
        match self.cookies.verify_packet(Some(from), message, cookie) {
            Ok(packet) if self.has_room(from) => Admission::Admitted(packet),
            Ok(_) => Admission::TooMany,
            Err(TunnResult::WriteToNetwork(reply)) => Admission::Ask(reply),
            Err(_) => Admission::Forged,
        }
    }

    /// Forgets what was counted, once a second.
    pub(crate) fn tick(&mut self, now: Instant) {
        self.cookies.reset_count();
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            self.since = Some(now);
            self.admitted = 0;
            self.of_source.fill(0);
        }
    }

    fn has_room(&mut self, from: IpAddr) -> bool {
        if self.admitted >= self.free {
            let place = self.hasher.hash_one(network(from)) as usize % PLACES;
            if self.admitted >= self.free + OF_ALL_SOURCES || self.of_source[place] >= OF_ONE_SOURCE {
                return false;
            }
            self.of_source[place] += 1;
        }
        self.admitted += 1;
        true
    }
}

/// What one sender can be expected to have of addresses: one of IPv4, 64 bits of IPv6.
fn network(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits() >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrivateKey;

    fn gate(free: u64) -> Gate {
        Gate::new(&PrivateKey::from_bytes([1; 32]).public(), free)
    }

    #[test]
    fn beyond_the_free_ones_an_address_has_its_share_and_another_its_own() {
        let (mut gate, now) = (gate(100), Instant::now());
        gate.tick(now);
        let admitted =
            |gate: &mut Gate, from: &str| (0..500).filter(|_| gate.has_room(from.parse().unwrap())).count();
        assert_eq!(admitted(&mut gate, "192.0.2.1"), 120);
        // One in a thousand times the two share a place; then the other has nothing.
        assert!([0, 20].contains(&admitted(&mut gate, "192.0.2.2")));
        gate.tick(now + Duration::from_millis(999));
        assert_eq!(admitted(&mut gate, "192.0.2.1"), 0);
        gate.tick(now + PERIOD);
        assert_eq!(admitted(&mut gate, "192.0.2.1"), 120);
    }

    #[test]
    fn addresses_of_one_network_of_ipv6_share_what_it_has() {
        let mut gate = gate(0);
        let count =
            (0..500u32).filter(|last| gate.has_room(format!("2001:db8::{last:x}").parse().unwrap())).count();
        assert_eq!(count, usize::from(OF_ONE_SOURCE));
    }

    #[test]
    fn however_many_addresses_there_are_all_of_them_have_an_end() {
        let mut gate = gate(100);
        let count = (0..1u32 << 16).filter(|bits| gate.has_room(IpAddr::V4((*bits).into()))).count();
        assert_eq!(count, 1100);
    }
}
