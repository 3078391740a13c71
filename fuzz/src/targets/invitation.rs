// SPDX-License-Identifier: Apache-2.0
//! The token of an invitation, and what the inviter keeps of it.

use isthmus_mesh::invitation::{Token, TokenHash};

use crate::Seed;

pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.to_text().as_str(), text.trim(), "two texts for one token");
        assert!(!format!("{token:?}").contains(&token.to_text()[..6]), "debug shows it");
        let kept = token.hash();
        assert!(kept.matches(&token));
        assert_eq!(kept.to_string().parse(), Ok(kept.clone()));
        let mut other = Token::from_random([0x5a; 32]);
        if other == token {
            other = Token::from_random([0xa5; 32]);
        }
        assert!(!kept.matches(&other));
    }
    if let Ok(hash) = text.parse::<TokenHash>() {
        assert_eq!(hash.to_string(), text.trim().to_ascii_lowercase());
        assert_eq!(hash.to_string().parse(), Ok(hash));
    }
}

pub(crate) fn seeds() -> Vec<Seed> {
    let token = Token::from_random([7; 32]);
    vec![
        ("token", token.to_text().as_bytes().to_vec()),
        ("token-with-newline", format!("{}\n", *token.to_text()).into_bytes()),
        ("token-with-padding", format!("{}=", *token.to_text()).into_bytes()),
        ("token-with-loose-bits", format!("{}9", &token.to_text()[..42]).into_bytes()),
        ("hash", token.hash().to_string().into_bytes()),
        ("hash-in-capitals", token.hash().to_string().to_ascii_uppercase().into_bytes()),
    ]
}
