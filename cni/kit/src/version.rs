// SPDX-License-Identifier: Apache-2.0
//! Versions of the CNI specification, and what each of them knows.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A released version of the specification. The order is that of the releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// 0.1.0: ADD and DEL.
    V0_1_0,
    /// 0.2.0: VERSION.
    V0_2_0,
    /// 0.3.0: lists of plugins, results with interfaces.
    V0_3_0,
    /// 0.3.1: the key `interface` in results is spelled right.
    V0_3_1,
    /// 0.4.0: CHECK, and the previous result on DEL.
    V0_4_0,
    /// 1.0.0: results without `ips[].version`.
    V1_0_0,
    /// 1.1.0: GC, STATUS, several versions in one configuration.
    V1_1_0,
}

/// A version that this library does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown CNI version {0:?}; known are 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0")]
pub struct UnknownVersion(pub String);

impl Version {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] =
        [Self::V0_1_0, Self::V0_2_0, Self::V0_3_0, Self::V0_3_1, Self::V0_4_0, Self::V1_0_0, Self::V1_1_0];
    /// What a configuration without `cniVersion` is written in.
    pub const OLDEST: Self = Self::V0_1_0;
    /// The newest version that this library speaks.
    pub const NEWEST: Self = Self::V1_1_0;

    /// The version as three numbers, such as `1.1.0`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Whether plugins can be asked to CHECK (since CNI 0.4.0).
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether DEL carries the previous result (since CNI 0.4.0).
    pub fn has_result_on_del(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether plugins can be asked to GC (since CNI 1.1.0).
    pub fn has_gc(self) -> bool {
        self >= Self::V1_1_0
    }

    /// Whether plugins can be asked for STATUS (since CNI 1.1.0).
    pub fn has_status(self) -> bool {
        self >= Self::V1_1_0
    }

    /// Whether results list interfaces, and a plugin gets the result of the one before it (since CNI 0.3.0).
    pub fn has_interfaces(self) -> bool {
        self >= Self::V0_3_0
    }

    /// Whether addresses of a result name their family in `version` (CNI 0.3.0 to 0.4.0).
    pub fn has_ip_version(self) -> bool {
        self.has_interfaces() && self < Self::V1_0_0
    }

    /// Whether interfaces have an MTU, and routes their metrics, table and scope (since CNI 1.1.0).
    pub fn has_details(self) -> bool {
        self >= Self::V1_1_0
    }

    /// The highest of `offered` that is not above `own` (CNI 1.1.0, section 1, "Version considerations").
    /// Versions that this library does not know are passed over. None if nothing is left.
    pub fn negotiate<'a>(offered: impl IntoIterator<Item = &'a str>, own: Self) -> Option<Self> {
        offered.into_iter().filter_map(|text| text.parse().ok()).filter(|version| *version <= own).max()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Version {
    type Err = UnknownVersion;

    fn from_str(text: &str) -> Result<Self, UnknownVersion> {
        let known = Self::ALL.into_iter().find(|version| version.as_str() == text);
        known.ok_or_else(|| UnknownVersion(text.chars().take(64).collect()))
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_reads_back_as_itself_and_they_are_in_order() {
        for version in Version::ALL {
            assert_eq!(version.to_string().parse(), Ok(version));
        }
        assert!(Version::ALL.is_sorted());
        assert!("1.2.0".parse::<Version>().is_err());
        assert!("1.0".parse::<Version>().is_err());
    }

    #[test]
    fn r8_the_highest_version_that_is_not_above_our_own_is_taken() {
        let offered = ["1.0.0", "9.0.0", "1.1.0", "0.4.0"];
        assert_eq!(Version::negotiate(offered, Version::V1_1_0), Some(Version::V1_1_0));
        assert_eq!(Version::negotiate(offered, Version::V1_0_0), Some(Version::V1_0_0));
        assert_eq!(Version::negotiate(offered, Version::V0_3_0), None);
    }

    #[test]
    fn p4_check_gc_and_status_begin_where_the_specification_has_them() {
        assert!(Version::V0_4_0.has_check() && !Version::V0_3_1.has_check());
        assert!(Version::V1_1_0.has_gc() && !Version::V1_0_0.has_gc());
        assert!(Version::V1_1_0.has_status() && !Version::V1_0_0.has_status());
    }
}
