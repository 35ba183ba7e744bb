//! `~/.netrc`: the logins that git has from it through curl.

use std::fs;
use std::path::Path;

use super::credentials::Login;
use crate::config::Variables;
use crate::secret::Secret;

/// The login for a host in the file in the home folder (or where `NETRC` says, as for curl).
pub(super) fn login(env: &Variables, host: &str, user: Option<&str>) -> Option<Login> {
    let path = match env.get("NETRC").filter(|path| !path.is_empty()) {
        Some(path) => path.into(),
        None => Path::new(env.get("HOME")?).join(".netrc"),
    };
    let text = fs::read_to_string(path).ok()?;
    let (user, password) = find(&text, host, user)?;
    Some(Login {
        user,
        password: Secret::new(password),
        origin: "the login in .netrc",
    })
}

/// The first entry for `host` (and `user`, where one is asked for), else the default one.
fn find(text: &str, host: &str, user: Option<&str>) -> Option<(String, String)> {
    let words = words(text);
    let mut words = words.iter().map(String::as_str);
    // Whether the entry at hand is for the host, and what it says so far.
    let mut applies = false;
    let (mut login, mut password) = (None, None);
    let complete = |applies: bool, login: &Option<&str>, password: &Option<&str>| {
        let fits = user.is_none_or(|user| login.is_none_or(|login| login == user));
        let login = login.or(user);
        match (applies && fits, login, password) {
            (true, Some(login), Some(password)) => Some((login.to_owned(), (*password).to_owned())),
            _ => None,
        }
    };
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" => {
                if let Some(found) = complete(applies, &login, &password) {
                    return Some(found);
                }
                (login, password) = (None, None);
                applies = word == "default"
                    || words
                        .next()
                        .is_some_and(|name| name.eq_ignore_ascii_case(host));
            }
            "login" => login = words.next(),
            "password" => password = words.next(),
            "account" => {
                words.next();
            }
            _ => {}
        }
    }
    complete(applies, &login, &password)
}

/// Words of the file: macros and comments left out, quoted ones without their quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut in_macro = false;
    for line in text.lines() {
        // A macro ends with an empty line.
        in_macro &= !line.trim().is_empty();
        if in_macro || line.trim_start().starts_with('#') {
            continue;
        }
        let mut rest = line.trim_start();
        while !rest.is_empty() {
            let word;
            (word, rest) = next_word(rest);
            if word == "macdef" {
                in_macro = true;
                break;
            }
            words.push(word);
            rest = rest.trim_start();
        }
    }
    words
}

fn next_word(text: &str) -> (String, &str) {
    let Some(inner) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut word = String::new();
    let mut letters = inner.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (word, &inner[at + 1..]),
            '\\' => word.extend(letters.next().map(|(_, letter)| letter)),
            letter => word.push(letter),
        }
    }
    (word, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_as_curl_finds_them() {
        let text = "# my logins\nmachine a.example login bob password p1\n\
                    machine b.example\n  login \"quoted \\\"user\"\n  password p#2\n\
                    macdef init\nmachine evil login x password y\n\n\
                    machine a.example login eve password p3\n\
                    machine c.example password alone\n\
                    default login anonymous password mail\n";
        for (host, user, expected) in [
            ("a.example", None, Some(("bob", "p1"))),
            ("A.Example", Some("eve"), Some(("eve", "p3"))),
            ("b.example", None, Some(("quoted \"user", "p#2"))),
            ("c.example", Some("token"), Some(("token", "alone"))),
            ("evil", None, Some(("anonymous", "mail"))),
            ("a.example", Some("nobody"), None),
        ] {
            let found = find(text, host, user);
            let found = found.as_ref().map(|(u, p)| (u.as_str(), p.as_str()));
            assert_eq!(found, expected, "{host} {user:?}");
        }
        assert_eq!(find("machine x login a", "x", None), None);
        assert_eq!(find("", "x", None), None);
    }
}
