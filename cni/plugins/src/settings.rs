// SPDX-License-Identifier: Apache-2.0
//! Fields that come by several ways.

use isthmus_cni_kit::config::capabilities::Mac;
use isthmus_cni_kit::error::Error;
use isthmus_cni_kit::plugin::Request;
use serde_json::Value;

use crate::failure::invalid;

/// The Ethernet address that the pod shall have, as six bytes: what the runtime says goes before `args.cni`, that before `CNI_ARGS`, that
/// before the configuration.
pub(crate) fn mac(request: &Request) -> Result<Option<[u8; 6]>, Error> {
    let text = |value: Value| value.as_str().map(str::to_owned).filter(|text| !text.is_empty());
    let of_runtime = request.config.capability::<Mac>()?.map(|mac| mac.0).filter(|text| !text.is_empty());
    let of_config = || request.config.raw().get("mac").cloned().and_then(text);
    let wanted = of_runtime.or_else(|| request.arg("mac").and_then(text)).or_else(of_config);
    wanted.map(|text| parse_mac(&text)).transpose()
}

/// Reads `0a:58:0a:00:00:02`. Code 7 for anything else, and for an address of a group.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6], Error> {
    let bytes: Option<Vec<u8>> = text
        .split([':', '-'])
        .map(|part| {
            let digits = part.len() == 2 && part.bytes().all(|letter| letter.is_ascii_hexdigit());
            u8::from_str_radix(part, 16).ok().filter(|_| digits)
        })
        .collect();
    let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    match mac {
        Some(mac) if mac[0] & 1 == 0 => Ok(mac),
        Some(_) => Err(invalid(format!("the Ethernet address {text:?} is that of a group"))),
        None => Err(invalid(format!("{text:?} is no Ethernet address, such as 0a:58:0a:00:00:02"))),
    }
}

/// The text of an Ethernet address.
pub(crate) fn mac_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ethernet_address_is_six_pairs_and_not_of_a_group() {
        assert_eq!(parse_mac("0A:58:0a:00:00:02"), Ok([0x0a, 0x58, 0x0a, 0, 0, 2]));
        for bad in [
            "",
            "0a:58",
            "0a:58:0a:00:00:0g",
            "01:00:00:00:00:00",
            "0a:58:0a:00:00:02:03",
            "+a:58:0a:00:00:02",
        ] {
            assert_eq!(parse_mac(bad).map_err(|error| error.code), Err(7), "{bad:?}");
        }
        assert_eq!(mac_text(&[0x0a, 0x58, 0, 1, 2, 255]), "0a:58:00:01:02:ff");
    }
}
