// SPDX-License-Identifier: Apache-2.0
//! The single-use token of an invitation. The inviter keeps only its hash.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// What the invited cluster shows to the inviter, once. Written as base64url without padding (RFC 4648, 5).
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token([u8; 32]);

/// Why a text is not a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an invitation token: give the 43 characters of the invitation's Secret, key `token`, unchanged")]
pub struct InvalidToken;

impl Token {
    /// Makes a token of 32 bytes from the system's random source.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The token as text, for the invitation's manifest and nothing else.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(URL_SAFE_NO_PAD.encode(self.0))
    }

    /// What the inviter keeps of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0).into())
    }
}

impl FromStr for Token {
    type Err = InvalidToken;
    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(text.trim()).map_err(|_| InvalidToken)?);
        Ok(Self(bytes.as_slice().try_into().map_err(|_| InvalidToken)?))
    }
}

impl TryFrom<String> for Token {
    type Error = InvalidToken;
    fn try_from(text: String) -> Result<Self, InvalidToken> {
        Zeroizing::new(text).parse()
    }
}

impl From<Token> for String {
    fn from(token: Token) -> String {
        URL_SAFE_NO_PAD.encode(token.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// SHA-256 of a token, written as lower-case hex. Knowing it does not let one redeem.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenHash([u8; 32]);

/// Why a text is not a token's hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a token hash: 64 hexadecimal digits are expected")]
pub struct InvalidTokenHash;

impl TokenHash {
    /// Whether the token is the one that was hashed; takes the same time wherever they differ.
    pub fn matches(&self, token: &Token) -> bool {
        let shown = token.hash();
        let difference = self.0.iter().zip(shown.0).fold(0, |difference, (a, b)| difference | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

impl FromStr for TokenHash {
    type Err = InvalidTokenHash;
    fn from_str(text: &str) -> Result<Self, InvalidTokenHash> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).map_err(|_| InvalidTokenHash)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_its_text_and_fits_only_its_own_hash() {
        let token = Token::from_random([7; 32]);
        let text = token.to_text();
        assert_eq!(text.len(), 43);
        assert_eq!(text.parse::<Token>().unwrap(), token);
        let kept: TokenHash = token.hash().to_string().parse().unwrap();
        assert!(kept.matches(&token));
        assert!(!kept.matches(&Token::from_random([8; 32])));
    }

    #[test]
    fn a_token_is_not_shown_by_debug() {
        let token = Token::from_random([7; 32]);
        assert!(!format!("{token:?}").contains(&token.to_text()[..8]));
    }

    #[test]
    fn a_text_of_another_length_is_not_a_token() {
        for wrong in ["", "short", &"A".repeat(44), "not base64!"] {
            assert_eq!(wrong.parse::<Token>(), Err(InvalidToken), "{wrong}");
        }
    }
}
