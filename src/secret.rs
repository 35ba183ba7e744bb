//! Values that must not be shown: keys, passwords, tokens.

use std::fmt;

/// A secret. It cannot be printed by accident: `Debug` and `Display` show a mask, and only
/// [`Secret::expose`], easy to search for, gives the value.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that has to send it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

/// `url` with the password of its user part replaced by `****`; any other text as it is.
/// Works on the text, so it also serves for addresses that are not valid URLs.
pub fn mask_url_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, tail) = rest.split_at(authority_end);
    let Some((user_info, host)) = authority.rsplit_once('@') else {
        return url.to_owned();
    };
    match user_info.split_once(':') {
        Some((user, _)) => format!("{scheme}://{user}:****@{host}{tail}"),
        // A lone user part is often a token (`https://TOKEN@host`), except for git's ssh user.
        None if scheme.starts_with("http") => format!("{scheme}://****@{host}{tail}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_printed() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "**** ****");
    }

    #[test]
    fn url_passwords_are_masked() {
        for (url, shown) in [
            ("https://h/a.git", "https://h/a.git"),
            ("https://u:p@h:8443/a.git", "https://u:****@h:8443/a.git"),
            ("https://u:p@w@h/a", "https://u:****@h/a"),
            ("https://ghp_token@h/a", "https://****@h/a"),
            ("ssh://git@h/a", "ssh://git@h/a"),
            ("git@h:a/b.git", "git@h:a/b.git"),
            ("https://h/a?x=b@c", "https://h/a?x=b@c"),
            ("/local/path", "/local/path"),
        ] {
            assert_eq!(mask_url_password(url), shown);
        }
    }
}
