//! Who may call: one key pair, and the tokens (JWT, HS256) that it is exchanged for.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, COOKIE};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use super::refusal::Refusal;
use super::{API_VERSION, COMPANY, COMPANY_NAME, SERVER_VERSION, USER_ID, USER_NAME};
use crate::secret::Secret;

/// The access key and its secret.
#[derive(Debug, Clone)]
pub struct KeyPair {
    pub access_key: String,
    pub secret_key: Secret,
}

impl KeyPair {
    pub fn random() -> KeyPair {
        KeyPair {
            access_key: random_text(1).to_uppercase(),
            secret_key: Secret::new(random_text(2)),
        }
    }
}

/// The key pair, and the key that signs tokens.
#[derive(Debug)]
pub struct Keys {
    pub pair: KeyPair,
    signing: Secret,
}

const DAY: i64 = 24 * 3600;
const DEFAULT_LIFE: i64 = 30 * DAY;
const LONGEST_LIFE: i64 = 365 * DAY;

/// Random letters and digits: 122 bits of them for each of `parts`.
fn random_text(parts: usize) -> String {
    (0..parts).map(|_| super::new_id()).collect()
}

impl Keys {
    pub fn random(pair: KeyPair) -> Keys {
        Keys {
            pair,
            signing: Secret::new(random_text(2)),
        }
    }

    /// The keys kept in `file`, which is made if there is none; only its owner can read it.
    pub fn kept_in(file: &Path) -> anyhow::Result<Keys> {
        let shown = file.display();
        match std::fs::read(file) {
            Ok(bytes) => Keys::from_json(&bytes).with_context(|| {
                format!("{shown} holds no keys: delete it, and new ones are made")
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let keys = Keys::random(KeyPair::random());
                let text = json!({
                    "access_key": keys.pair.access_key,
                    "secret_key": keys.pair.secret_key.expose(),
                    "signing_key": keys.signing.expose(),
                });
                let mut options = std::fs::OpenOptions::new();
                options.write(true).create_new(true).mode(0o600);
                let written = options
                    .open(file)
                    .and_then(|mut file| file.write_all(text.to_string().as_bytes()));
                written.with_context(|| format!("cannot write {shown}"))?;
                Ok(keys)
            }
            Err(e) => Err(e).with_context(|| format!("cannot read {shown}")),
        }
    }

    fn from_json(bytes: &[u8]) -> anyhow::Result<Keys> {
        let kept: Value = serde_json::from_slice(bytes)?;
        let text = |field: &str| {
            let text = kept[field].as_str().filter(|text| !text.is_empty());
            text.map(str::to_owned)
                .with_context(|| format!("no {field}"))
        };
        Ok(Keys {
            pair: KeyPair {
                access_key: text("access_key")?,
                secret_key: Secret::new(text("secret_key")?),
            },
            signing: Secret::new(text("signing_key")?),
        })
    }

    /// A token; `life` in seconds, as the caller of `auth.login` asks for it.
    pub fn token(&self, life: Option<i64>, now: i64) -> String {
        let life = life.unwrap_or(DEFAULT_LIFE).clamp(1, LONGEST_LIFE);
        let claims = json!({
            "exp": now + life, "iat": now, "auth_type": "Bearer", "env": "",
            "identity": {
                "user": USER_ID, "company": COMPANY, "role": "user",
                "user_name": USER_NAME, "company_name": COMPANY_NAME,
            },
            "api_version": API_VERSION, "server_version": SERVER_VERSION, "server_build": "",
            "feature_set": "basic",
        });
        let encode = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!(
            "{}.{}",
            encode(json!({"alg": "HS256", "typ": "JWT"})),
            encode(claims)
        );
        let signature = URL_SAFE_NO_PAD.encode(self.mac(&signed).finalize().into_bytes());
        format!("{signed}.{signature}")
    }

    fn mac(&self, text: &str) -> Hmac<Sha256> {
        // HMAC takes keys of any length; the empty key never comes here.
        let mut mac = Hmac::<Sha256>::new_from_slice(self.signing.expose().as_bytes())
            .unwrap_or_else(|_| Hmac::<Sha256>::new(&Default::default()));
        mac.update(text.as_bytes());
        mac
    }

    fn check_token(&self, token: &str, now: i64) -> Result<(), Refusal> {
        let invalid = |reason: &str| {
            let message = format!("Invalid token (invalid jwt token): reason={reason}");
            Refusal::new(401, 30, message)
        };
        let (signed, signature) = token
            .rsplit_once('.')
            .ok_or_else(|| invalid("Not enough segments"))?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| invalid("Invalid crypto padding"))?;
        self.mac(signed)
            .verify_slice(&signature)
            .map_err(|_| invalid("Signature verification failed"))?;
        let claims = signed.split_once('.').map_or(signed, |(_, claims)| claims);
        let claims = URL_SAFE_NO_PAD.decode(claims).unwrap_or_default();
        let claims: Value = serde_json::from_slice(&claims).unwrap_or_default();
        match claims["exp"].as_i64() {
            Some(end) if end > now => Ok(()),
            _ => Err(invalid("Signature has expired")),
        }
    }

    fn check_pair(&self, encoded: &str) -> Result<(), Refusal> {
        let malformed = || Refusal::new(401, 21, "Unauthorized (malformed credentials)");
        let decoded = STANDARD.decode(encoded.trim()).map_err(|_| malformed())?;
        let decoded = String::from_utf8(decoded).map_err(|_| malformed())?;
        let (access_key, secret_key) = decoded.split_once(':').ok_or_else(malformed)?;
        let right = access_key == self.pair.access_key
            && same_secret(secret_key, self.pair.secret_key.expose());
        if right {
            return Ok(());
        }
        let message = "Unauthorized (invalid credentials) (failed to locate provided credentials)";
        Err(Refusal::new(401, 22, message))
    }

    /// Lets a call in by key pair or token; the file store takes the token as a cookie too.
    pub fn check(&self, headers: &HeaderMap, now: i64) -> Result<(), Refusal> {
        let header = headers.get(AUTHORIZATION).map(|header| header.to_str());
        let Some(header) = header else {
            return match token_cookie(headers) {
                Some(token) => self.check_token(token, now),
                None => Err(Refusal::new(401, 20, "Unauthorized (missing credentials)")),
            };
        };
        let header = header.unwrap_or_default();
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            self.check_token(rest.trim(), now)
        } else if scheme.eq_ignore_ascii_case("basic") {
            self.check_pair(rest)
        } else {
            let message = format!("Unauthorized (bad authentication type): type={scheme}");
            Err(Refusal::new(401, 10, message))
        }
    }
}

/// `clearml_token_…=TOKEN` among the cookies, as the web page keeps it.
fn token_cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get(COOKIE)?.to_str().ok()?;
    cookies.split(';').find_map(|cookie| {
        let (name, value) = cookie.trim().split_once('=')?;
        name.starts_with("clearml_token").then_some(value)
    })
}

/// Compares digests under a fresh key, so that the time taken says nothing of where they differ.
fn same_secret(a: &str, b: &str) -> bool {
    let key = super::new_id();
    let keyed = |text: &str| {
        let keys = Keys {
            pair: KeyPair {
                access_key: String::new(),
                secret_key: Secret::new(""),
            },
            signing: Secret::new(key.clone()),
        };
        keys.mac(text)
    };
    keyed(a)
        .verify_slice(&keyed(b).finalize().into_bytes())
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        headers
    }

    #[test]
    fn who_is_let_in() {
        let keys = Keys::random(KeyPair {
            access_key: "KEY".into(),
            secret_key: Secret::new("secret:with:colons"),
        });
        let other = Keys::random(KeyPair::random());
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        let bearer = |token: String| format!("Bearer {token}");
        let now = 1_000_000;
        for (header, expected) in [
            (basic("KEY:secret:with:colons"), None),
            (basic("KEY:secret"), Some(22)),
            (basic("OTHER:secret:with:colons"), Some(22)),
            (basic("KEY"), Some(21)),
            ("Basic %%%".into(), Some(21)),
            ("Digest x".into(), Some(10)),
            (bearer(keys.token(None, now)), None),
            (bearer(keys.token(Some(5), now - 4)), None),
            (bearer(keys.token(Some(5), now - 5)), Some(30)),
            (bearer(other.token(None, now)), Some(30)),
            (bearer("garbage".into()), Some(30)),
            (bearer(String::new()), Some(30)),
        ] {
            let refused = keys.check(&headers(&header), now).err().map(|r| r.subcode);
            assert_eq!(refused, expected, "{header}");
        }
        let missing = keys.check(&HeaderMap::new(), now).unwrap_err();
        assert_eq!((missing.code, missing.subcode), (401, 20));
        let mut cookie = HeaderMap::new();
        let value = format!("a=b; clearml_token_basic={}", keys.token(None, now));
        cookie.insert(COOKIE, value.parse().unwrap());
        assert_eq!(keys.check(&cookie, now), Ok(()));
    }

    #[test]
    fn a_token_lives_a_month_or_as_asked_but_a_year_at_most() {
        let keys = Keys::random(KeyPair::random());
        for (asked, life) in [
            (None, DEFAULT_LIFE),
            (Some(60), 60),
            (Some(i64::MAX), LONGEST_LIFE),
            (Some(-1), 1),
        ] {
            let token = keys.token(asked, 100);
            let claims = URL_SAFE_NO_PAD
                .decode(token.split('.').nth(1).unwrap())
                .unwrap();
            let claims: Value = serde_json::from_slice(&claims).unwrap();
            assert_eq!(claims["exp"].as_i64().unwrap() - 100, life);
        }
    }

    #[test]
    fn kept_keys_are_private_and_stay() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        let first = Keys::kept_in(&file).unwrap();
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = Keys::kept_in(&file).unwrap();
        assert_eq!(first.pair.access_key, second.pair.access_key);
        let token = first.token(None, 100);
        assert_eq!(second.check_token(&token, 101), Ok(()));
        std::fs::write(&file, "{}").unwrap();
        assert!(Keys::kept_in(&file).is_err());
    }
}
