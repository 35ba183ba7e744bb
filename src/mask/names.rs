//! Which names say that a value is secret. Pure.

use regex::RegexSet;

/// Whether an environment variable of this name holds a secret.
pub fn is_secret_variable(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    let words: Vec<&str> = name.split(['_', '-', '.']).collect();
    let last = words.last().copied().unwrap_or_default();
    if NOT_THE_SECRET.contains(&last) {
        return false;
    }
    let has = |list: &[&str]| words.iter().any(|word| list.contains(word));
    has(&SECRET_WORDS)
        || (words.len() > 1 && SECRET_LAST_WORDS.contains(&last) && !NO_SECRETS.contains(&&*name))
        || (last == "KEY" && words.len() > 1 && SECRET_KEYS.contains(&words[words.len() - 2]))
        || name.ends_with("CONNECTION_STRING")
        || name.ends_with("CONNECTIONSTRING")
        || name.ends_with("PASSWORD")
}

const SECRET_WORDS: [&str; 12] = [
    "TOKEN",
    "SECRET",
    "SECRETS",
    "SECRETKEY",
    "PASSWORD",
    "PASSWORDS",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
    "APIKEY",
    "ACCESSKEY",
];
const SECRET_LAST_WORDS: [&str; 4] = ["PASS", "PWD", "PAT", "AUTHTOKEN"];
const NO_SECRETS: [&str; 2] = ["INIT_PWD", "OLD_PWD"];
/// What makes a key one to hide: there are also cache keys, sort keys and public keys.
const SECRET_KEYS: [&str; 19] = [
    "ACCESS",
    "ACCOUNT",
    "ADMIN",
    "API",
    "APP",
    "AUTH",
    "DECRYPTION",
    "DEPLOY",
    "ENCRYPTION",
    "LICENSE",
    "MASTER",
    "PRIVATE",
    "SAS",
    "SECRET",
    "SHARED",
    "SIGNING",
    "SSH",
    "STORAGE",
    "SUBSCRIPTION",
];
/// The last word of what is about a secret: where it is, what it is called, how long it lives.
const NOT_THE_SECRET: [&str; 29] = [
    "AUDIENCE",
    "DIR",
    "DIRECTORY",
    "ENABLED",
    "ENDPOINT",
    "EXPIRATION",
    "EXPIRES",
    "EXPIRY",
    "FILE",
    "FOLDER",
    "HOST",
    "ID",
    "ISSUER",
    "LENGTH",
    "LIMIT",
    "NAME",
    "NAMESPACE",
    "PATH",
    "PORT",
    "PROVIDER",
    "REGION",
    "SEC",
    "SECONDS",
    "TIMEOUT",
    "TTL",
    "TYPE",
    "URI",
    "URL",
    "USER",
];

/// Which keys of `clearml.conf` hold secrets.
#[derive(Debug)]
pub struct KeyNames {
    hide: RegexSet,
    show: RegexSet,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "{key} of clearml.conf has a pattern that cannot be read: {cause}\n\
     Give regular expressions without look-around and back-references."
)]
pub struct BadPattern {
    key: &'static str,
    cause: regex::Error,
}

/// What is hidden in any case.
const HIDE: [&str; 4] = ["secret", "pass", "token", "_key"];
const SHOW: [&str; 1] = ["^enable_git_ask_pass$"];

impl Default for KeyNames {
    fn default() -> Self {
        Self {
            hide: RegexSet::empty(),
            show: RegexSet::empty(),
        }
    }
}

impl KeyNames {
    /// `hide_secrets` and `dont_hide_secrets` of `agent.sanitize_config_printout`: more patterns,
    /// besides those that always count.
    pub fn new(hide: &[String], show: &[String]) -> Result<Self, BadPattern> {
        let set = |key, always: &[&str], more: &[String]| {
            let always = always.iter().copied();
            // The contents of a file are no secret as a whole, and would hide its common lines.
            let more = more.iter().map(String::as_str).filter(|p| *p != "contents");
            RegexSet::new(always.chain(more)).map_err(|cause| BadPattern { key, cause })
        };
        Ok(Self {
            hide: set("agent.sanitize_config_printout.hide_secrets", &HIDE, hide)?,
            show: set(
                "agent.sanitize_config_printout.dont_hide_secrets",
                &SHOW,
                show,
            )?,
        })
    }

    pub fn is_secret(&self, key: &str) -> bool {
        let lower = key.to_lowercase();
        let matches = |set: &RegexSet| set.is_match(key) || set.is_match(&lower);
        matches(&self.hide) && !matches(&self.show)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_variables() {
        for (name, expected) in [
            ("GITHUB_TOKEN", true),
            ("HF_TOKEN", true),
            ("TOKEN", true),
            ("my_secret_value", true),
            ("AWS_SECRET_ACCESS_KEY", true),
            ("AWS_SESSION_TOKEN", true),
            ("AZURE_STORAGE_KEY", true),
            ("AZURE_STORAGE_CONNECTION_STRING", true),
            ("CLEARML_API_SECRET_KEY", true),
            ("CLEARML_API_ACCESS_KEY", true),
            ("CLEARML_AGENT_GIT_PASS", true),
            ("WANDB_API_KEY", true),
            ("SSH_PRIVATE_KEY", true),
            ("DB_PASSWORD", true),
            ("PGPASSWORD", true),
            ("MYSQL_PWD", true),
            ("AZURE_DEVOPS_EXT_PAT", true),
            ("GOOGLE_CREDENTIALS", true),
            ("SSH_KEY_PASSPHRASE", true),
            ("PWD", false),
            ("OLDPWD", false),
            ("PATH", false),
            ("PASS", false),
            ("TOKENIZERS_PARALLELISM", false),
            ("MAX_TOKENS", false),
            ("AWS_ACCESS_KEY_ID", false),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", false),
            ("DB_PASSWORD_FILE", false),
            ("TOKEN_URL", false),
            ("SECRET_NAME", false),
            ("SSH_PUBLIC_KEY", false),
            ("CACHE_KEY", false),
            ("KEY", false),
            ("COMPASS", false),
            ("BYPASS_CACHE", false),
            ("CLEARML_AGENT_GIT_USER", false),
        ] {
            assert_eq!(is_secret_variable(name), expected, "{name}");
        }
    }

    #[test]
    fn names_of_keys() {
        let own = ["^my_own$".to_owned(), "contents".to_owned()];
        let keys = KeyNames::new(&own, &["^public_".to_owned()]).unwrap();
        for (key, expected) in [
            ("secret_key", true),
            ("git_pass", true),
            ("secret", true),
            ("account_key", true),
            ("My_Token", true),
            ("my_own", true),
            ("not_my_own", false),
            ("contents", false),
            ("public_token", false),
            ("enable_git_ask_pass", false),
            ("git_user", false),
        ] {
            assert_eq!(keys.is_secret(key), expected, "{key}");
        }
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let error = KeyNames::new(&["(?=x)".to_owned()], &[]).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("agent.sanitize_config_printout.hide_secrets of clearml.conf"));
        assert!(text.contains("(?=x)"), "{text}");
    }
}
