//! What the agent reads of the server's token (a JWT): when it ends, and what kind of server this is.
//! The signature is the server's business.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::secret::Secret;

/// A bearer token and its life, in seconds since the epoch.
#[derive(Debug, Clone)]
pub struct Token {
    pub value: Secret,
    life: Option<Life>,
    /// What the server offers: `basic` is the open-source one.
    feature_set: Option<String>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Life {
    exp: u64,
    #[serde(default)]
    iat: u64,
}

#[derive(Debug, Default, Deserialize)]
struct Features {
    #[serde(default)]
    feature_set: Option<String>,
}

impl Token {
    /// Takes any text: a token that is no JWT is just never known to be near its end.
    pub fn new(value: impl Into<String>) -> Self {
        let value = value.into();
        let claims = value
            .split('.')
            .nth(1)
            .and_then(|payload| URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok())
            .unwrap_or_default();
        let features: Features = serde_json::from_slice(&claims).unwrap_or_default();
        Self {
            value: Secret::new(value),
            life: serde_json::from_slice(&claims).ok(),
            feature_set: features.feature_set.filter(|set| !set.is_empty()),
        }
    }

    /// What the server can do, in its own word: `basic` is the open-source one.
    pub fn feature_set(&self) -> &str {
        self.feature_set.as_deref().unwrap_or("basic")
    }

    /// Whether the server says that it offers `feature_set`.
    pub fn names(&self, feature_set: &str) -> bool {
        self.feature_set.as_deref() == Some(feature_set)
    }

    /// Whether a new one should be fetched before the next call: less than a tenth of its life is
    /// left, at most an hour and at least ten seconds.
    pub fn ends_soon(&self, now: u64) -> bool {
        let Some(life) = self.life else { return false };
        let whole = life.exp.saturating_sub(life.iat);
        let margin = (whole / 10).clamp(10.min(whole / 2), 3600);
        now + margin >= life.exp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(payload: &str) -> Token {
        Token::new(format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(payload)))
    }

    #[test]
    fn a_server_that_says_nothing_is_basic() {
        for (payload, expected) in [
            (r#"{"exp": 1, "feature_set": "advanced"}"#, "advanced"),
            (r#"{"feature_set": "pro"}"#, "pro"),
            (r#"{"exp": 1, "feature_set": null}"#, "basic"),
            (r#"{"exp": 1}"#, "basic"),
            ("no JSON", "basic"),
        ] {
            assert_eq!(token(payload).feature_set(), expected, "{payload}");
        }
    }

    #[test]
    fn a_token_is_renewed_before_it_ends() {
        let month = token(r#"{"iat": 1000000, "exp": 3592000}"#);
        assert!(!month.ends_soon(1_000_000));
        assert!(!month.ends_soon(3_588_000));
        assert!(month.ends_soon(3_588_400));
        let short = token(r#"{"iat": 100, "exp": 104}"#);
        assert!(!short.ends_soon(100));
        assert!(short.ends_soon(102));
    }

    #[test]
    fn a_token_says_what_the_server_offers() {
        assert!(token(r#"{"exp": 1, "feature_set": "advanced"}"#).names("advanced"));
        assert!(!token(r#"{"exp": 1, "feature_set": "basic"}"#).names("advanced"));
        assert!(!token(r#"{"exp": 1, "feature_set": null}"#).names("advanced"));
        assert!(!Token::new("opaque").names("advanced"));
    }

    #[test]
    fn an_opaque_token_is_used_until_refused() {
        assert!(!Token::new("opaque").ends_soon(u64::MAX / 2));
        assert!(!token("not json").ends_soon(0));
    }
}
