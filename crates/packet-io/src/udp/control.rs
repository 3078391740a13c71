// SPDX-License-Identifier: Apache-2.0
//! Control messages (cmsg(3)): the size that datagrams are cut to or were joined from, and which of our addresses they are of.

use std::net::{IpAddr, Ipv6Addr};

/// Space for two: of a segment size (24 bytes), and of one of our addresses (40).
pub(super) const CONTROL_BYTES: usize = 64;

/// Control messages must be aligned as `cmsghdr` is.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control(pub(super) [u8; CONTROL_BYTES]);

impl Control {
    /// Has the datagrams cut to this size, and sent from this address of ours.
    pub(super) fn write(&mut self, header: &mut libc::msghdr, segment: Option<u16>, source: Option<IpAddr>) {
        let mut used = 0;
        if let Some(size) = segment {
            used += self.put(used, libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
        }
        if let Some(source) = source {
            // in6_pktinfo: the address, IPv4 mapped; and a link, where 0 leaves it to the routes.
            let mut info = [0; 20];
            info[..16].copy_from_slice(&mapped(source).octets());
            used += self.put(used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
        }
        if used > 0 {
            header.msg_control = self.0.as_mut_ptr().cast();
            header.msg_controllen = used as _;
        }
    }

    /// Writes one message at `at`; returns the space that it takes.
    fn put(&mut self, at: usize, level: libc::c_int, kind: libc::c_int, data: &[u8]) -> usize {
        let length = data.len() as libc::c_uint;
        // SAFETY: CMSG_SPACE and CMSG_LEN compute with their argument only.
        let (space, told) = unsafe { (libc::CMSG_SPACE(length) as usize, libc::CMSG_LEN(length) as usize) };
        let head = size_of::<libc::cmsghdr>();
        let place = &mut self.0[at..at + space];
        // As cmsg(3) has it: the header's length in a word of the machine, level, type, and the data behind the aligned header.
        place[..size_of::<usize>()].copy_from_slice(&told.to_ne_bytes());
        place[head - 8..head - 4].copy_from_slice(&level.to_ne_bytes());
        place[head - 4..head].copy_from_slice(&kind.to_ne_bytes());
        place[told - data.len()..told].copy_from_slice(data);
        space
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// What the kernel tells of a datagram.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// The size of those that it coalesced (UDP_GRO), if it did.
    pub(super) segment: Option<usize>,
    /// At which of our addresses it arrived.
    pub(super) own: Option<IpAddr>,
}

pub(super) fn read_controls(header: &libc::msghdr) -> Told {
    let mut told = Told::default();
    // SAFETY: `header` was filled by recvmmsg and its control space is alive and at most `CONTROL_BYTES` long; CMSG_FIRSTHDR and
    // CMSG_NXTHDR stay inside it, and no more of a message is read than it says that it holds.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            let data = libc::CMSG_DATA(control);
            let holds = ((*control).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            match ((*control).cmsg_level, (*control).cmsg_type) {
                (libc::SOL_UDP, libc::UDP_GRO) if holds >= size_of::<libc::c_int>() => {
                    told.segment = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).ok();
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if holds >= size_of::<libc::in6_pktinfo>() => {
                    let info = data.cast::<libc::in6_pktinfo>().read_unaligned();
                    told.own = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).to_canonical());
                }
                _ => {}
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The header of a message with these controls, as the kernel hands it over.
    fn header(control: &mut Control, used: usize) -> libc::msghdr {
        // SAFETY: `msghdr` is plain data of the kernel's; all zero bytes are a valid value.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = used as _;
        header
    }

    #[test]
    fn what_the_kernel_tells_is_read_wherever_it_stands_and_no_more_of_it_than_is_there() {
        let own: IpAddr = "192.0.2.7".parse().unwrap();
        let mut info = [0; 20];
        info[..16].copy_from_slice(&mapped(own).octets());
        let segment = 1452_i32.to_ne_bytes();
        for segment_first in [true, false] {
            let mut control = Control([0; CONTROL_BYTES]);
            let mut used = 0;
            for is_segment in [segment_first, !segment_first] {
                used += match is_segment {
                    true => control.put(used, libc::SOL_UDP, libc::UDP_GRO, &segment),
                    false => control.put(used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info),
                };
            }
            assert_eq!(used, CONTROL_BYTES);
            let told = read_controls(&header(&mut control, used));
            assert_eq!((told.segment, told.own), (Some(1452), Some(own)));
            let none = read_controls(&header(&mut control, 0));
            assert_eq!((none.segment, none.own), (None, None));
        }
        // One that says that it holds less than it should.
        let mut control = Control([0; CONTROL_BYTES]);
        let used = control.put(0, libc::SOL_UDP, libc::UDP_GRO, &[1, 2]);
        assert_eq!(read_controls(&header(&mut control, used)).segment, None);
    }

    #[test]
    fn what_is_written_reads_back() {
        let own: IpAddr = "2001:db8::9".parse().unwrap();
        let mut control = Control([0; CONTROL_BYTES]);
        let mut header = header(&mut control, 0);
        control.write(&mut header, Some(1200), Some(own));
        assert_eq!(header.msg_controllen, CONTROL_BYTES);
        let told = read_controls(&header);
        assert_eq!(
            (told.segment, told.own),
            (None, Some(own)),
            "a size to cut to is not one that was joined"
        );
    }
}
