//! What the words of uv, pip and git mean.

use std::sync::LazyLock;

use regex::Regex;

use super::{Asked, Cause, Doubt};

/// Of a tool's last lines, the words that name the cause: one line, not too long.
pub fn detail(cause: &Cause, lines: &[String]) -> String {
    const LONGEST: usize = 300;
    let lines = || lines.iter().map(|line| line.trim());
    let text = match cause {
        // Said already, in words of the agent's.
        Cause::NoSuchPackage(_)
        | Cause::NoSuchVersion(_)
        | Cause::Refused { .. }
        | Cause::NoGit(_)
        | Cause::DiskFull => String::new(),
        Cause::Conflict => {
            let from = lines().position(|line| line.contains("Because "));
            let because: Vec<&str> = lines().skip(from.unwrap_or(usize::MAX)).collect();
            let because = because.join(" ");
            let because = because.trim_start_matches("cause: ");
            let end = because.find(", we can conclude").unwrap_or(because.len());
            because[..end].to_owned()
        }
        Cause::Build(_) => {
            // Python's own last word, not the frames above it.
            static RAISED: LazyLock<Regex> = LazyLock::new(|| {
                pattern(r"^(?:[A-Za-z_.]+(?:Error|Exception)|(?:fatal )?error): .+")
            });
            let mut said =
                lines().filter(|line| RAISED.is_match(line) && !line.contains("Failed to build"));
            said.next_back().unwrap_or_default().to_owned()
        }
        Cause::Certificate { .. } => {
            static DOUBT: LazyLock<Regex> = LazyLock::new(|| {
                pattern(
                    r"(?:invalid peer certificate|certificate verify failed|SSL certificate problem): [^()]+|hostname '[^']*' doesn't match '[^']*'|server certificate verification failed",
                )
            });
            let said = lines().find_map(|line| DOUBT.find(line));
            said.map_or("", |said| said.as_str().trim()).to_owned()
        }
        Cause::Proxy | Cause::Network => {
            // pip's last words are that it found nothing.
            let innermost = lines().filter_map(error_of).rfind(|said| {
                !said.contains("matching distribution") && !said.contains("from versions")
            });
            innermost.unwrap_or_default().to_owned()
        }
        Cause::Other => lines().filter_map(error_of).collect::<Vec<_>>().join(": "),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} …", text[..end].trim_end()),
        None => text,
    }
}

/// The host of the first https address that is named.
pub fn host(lines: &[String]) -> Option<url::Url> {
    static HOST: LazyLock<Regex> = LazyLock::new(|| pattern(r"https://[^\s/)'`]+"));
    let found = lines.iter().find_map(|line| HOST.find(line))?;
    url::Url::parse(found.as_str()).ok()
}

/// What a tool's line says of an error or its cause, if it does.
fn error_of(line: &str) -> Option<&str> {
    let line = line.trim();
    let said = ["error: ", "ERROR: ", "cause: "]
        .iter()
        .find_map(|word| line.strip_prefix(word));
    said.map(str::trim)
}

fn pattern(text: &str) -> Regex {
    #[expect(clippy::unwrap_used, reason = "constant patterns, each used by a test")]
    Regex::new(text).unwrap()
}

fn certificate(asked: Asked, said: &str) -> Cause {
    let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let doubt = match () {
        () if says(&[
            "UnknownIssuer",
            "local issuer",
            "self-signed",
            "self signed",
            "verification failed",
        ]) =>
        {
            Doubt::Authority
        }
        () if says(&[
            "not valid for name",
            "NotValidForName",
            "doesn't match",
            "mismatch",
        ]) =>
        {
            Doubt::Name
        }
        () if says(&["xpired", "NotValidYet", "not yet valid"]) => Doubt::Time,
        () => Doubt::Other,
    };
    Cause::Certificate { asked, doubt }
}

/// The package of a build whose name the tool does not say.
pub const UNNAMED: &str = "a package";

const NETWORK: &str = "(error sending request|Failed to fetch|Connection refused|Max retries exceeded|timed out|dns error|Temporary failure in name resolution|Name or service not known)";

/// Whether the same may succeed at another time, with nothing changed here or in the list.
pub fn may_pass(cause: &Cause, lines: &[String]) -> bool {
    static AWAY: LazyLock<Regex> = LazyLock::new(|| pattern(NETWORK));
    match cause {
        Cause::NoSuchPackage(_) | Cause::NoSuchVersion(_) | Cause::Conflict => false,
        // What a build needs may have to be downloaded.
        Cause::Build(_) => lines.iter().any(|line| AWAY.is_match(line)),
        _ => true,
    }
}

/// What the words of uv or pip mean. `lines` are the last ones, in order.
pub fn classify(lines: &[String]) -> Cause {
    // uv breaks its long sentences over lines.
    let text = lines
        .iter()
        .map(|line| line.trim())
        .collect::<Vec<_>>()
        .join(" ");
    type Rule = (Regex, fn(String) -> Cause);
    static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
        vec![
            (pattern("(No space left on device)"), |_| Cause::DiskFull),
            (
                pattern(r"Failed to [a-z ]+ `([^`]+)`.{0,400}Git executable not found"),
                Cause::NoGit,
            ),
            (
                pattern("(Git executable not found|Cannot find command 'git')"),
                |_| Cause::NoGit(UNNAMED.into()),
            ),
            (
                pattern(
                    "(SSL certificate problem: [a-z ]+|server certificate verification failed)",
                ),
                |said| certificate(Asked::Git, &said),
            ),
            (
                pattern(
                    r"((?:invalid peer certificate|CERTIFICATE_VERIFY_FAILED|CertificateError|problem confirming the ssl certificate).{0,600})",
                ),
                |said| certificate(Asked::Index, &said),
            ),
            (
                pattern(
                    "(tunnel error|Tunnel connection failed|Cannot connect to proxy|Unable to connect to proxy|Proxy Authentication Required|proxy authentication required)",
                ),
                |_| Cause::Proxy,
            ),
            (
                pattern(
                    r"Failed to build (?:installable wheels for some pyproject.toml based projects )?[`']?([^`'\s(]+)",
                ),
                Cause::Build,
            ),
            (pattern(r"Failed building wheel for (\S+)"), Cause::Build),
            (
                pattern(
                    r"(The build backend returned an error|metadata-generation-failed|setup\.py (?:egg_info|install) .*exit(?:ed)? )",
                ),
                |_| Cause::Build(UNNAMED.into()),
            ),
            (
                pattern(
                    r"(?:Because|And because|and) (\S+) was not found in the (?:package registry|provided package locations|cache)",
                ),
                Cause::NoSuchPackage,
            ),
            // pip's last attempt: what it finds nowhere then may be just there.
            (pattern(r"(Retrying \(Retry\(total=0)"), |_| Cause::Network),
            (
                pattern(r"satisfies the requirement (\S+).*?\(from versions: none\)"),
                Cause::NoSuchPackage,
            ),
            (
                pattern(r"satisfies the requirement (\S+).*?\(from versions: "),
                Cause::NoSuchVersion,
            ),
            (
                pattern(
                    r"(?:there is no version of|there are no versions of|only .{1,400} (?:is|are) available and you require) ([^ ,]+)",
                ),
                Cause::NoSuchVersion,
            ),
            (pattern(NETWORK), |_| Cause::Network),
            (
                pattern(
                    "(No solution found|conflicting dependencies|ResolutionImpossible|unsatisfiable)",
                ),
                |_| Cause::Conflict,
            ),
        ]
    });
    for (rule, cause) in RULES.iter() {
        if let Some(found) = rule.captures(&text).and_then(|c| c.get(1)) {
            return cause(found.as_str().trim_end_matches(['.', ',']).to_owned());
        }
    }
    Cause::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(doubt: Doubt) -> Cause {
        let asked = Asked::Index;
        Cause::Certificate { asked, doubt }
    }

    #[test]
    fn what_another_time_may_mend() {
        for (words, passing) in [
            (
                "cause: HTTP status server error (503 Service Unavailable)",
                true,
            ),
            ("error: Failed to fetch: `http://h/simple/x/`", true),
            ("No space left on device", true),
            ("Because x was not found in the package registry and", false),
            ("there is no version of x==2 and you require x==2", false),
            ("error: No solution found", false),
            ("Failed to build `x==1`\ngcc: command not found", false),
            (
                "Failed to build `x==1`\nFailed to fetch: `http://h/y`",
                true,
            ),
        ] {
            let lines: Vec<String> = words.lines().map(str::to_owned).collect();
            assert_eq!(may_pass(&classify(&lines), &lines), passing, "{words}");
        }
    }

    #[test]
    fn the_words_of_uv_and_pip_are_understood() {
        for (words, cause) in [
            (
                "error: No solution found when resolving dependencies\n  cause: Because \
                 nonexistent-zz was not found in the package registry and you require \
                 nonexistent-zz>1, we can conclude that your requirements are unsatisfiable.",
                Cause::NoSuchPackage("nonexistent-zz".into()),
            ),
            (
                "  cause: Because there is no version of six==99.0 and you require six==99.0, we \
                 can conclude that your requirements are unsatisfiable.",
                Cause::NoSuchVersion("six==99.0".into()),
            ),
            (
                "error: No solution found when resolving dependencies\n  cause: Because \
                 requests==2.31.0 depends on idna>=2.5,<4 and you require requests==2.31.0, we \
                 can conclude that you require idna>=2.5,<4.",
                Cause::Conflict,
            ),
            (
                "ERROR: Could not find a version that satisfies the requirement nope>1 (from \
                 -r /tmp/x.txt (line 1)) (from versions: none)\nERROR: No matching distribution found for nope>1",
                Cause::NoSuchPackage("nope>1".into()),
            ),
            (
                "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by \
                 'NewConnectionError'\nERROR: Could not find a version that satisfies the \
                 requirement six (from versions: none)",
                Cause::Network,
            ),
            (
                "ERROR: Could not find a version that satisfies the requirement six==99.0 (from \
                 versions: 0.9.0, 1.17.0)",
                Cause::NoSuchVersion("six==99.0".into()),
            ),
            (
                "RuntimeError: boom\nERROR: Failed to build 'file:///x/bad' when getting \
                 requirements to build wheel",
                Cause::Build("file:///x/bad".into()),
            ),
            (
                "error: Failed to build `bad @ file:///x/bad`\n  cause: The build backend",
                Cause::Build("bad".into()),
            ),
            (
                "error: The build backend returned an error\n  cause: Call to `x` failed",
                Cause::Build(UNNAMED.into()),
            ),
            (
                "error: Request failed after 3 retries in 10.2s\n  cause: Failed to fetch: \
                 http://127.0.0.1:9/simple/wheel/",
                Cause::Network,
            ),
            (
                "error: Failed to fetch: https://h/simple/nope/\n  cause: client error (Connect)\n  \
                 cause: invalid peer certificate: UnknownIssuer\n\nhint: Consider enabling use of \
                 system TLS certificates with the `--system-certs` command-line flag",
                certificate(Doubt::Authority),
            ),
            (
                "cause: invalid peer certificate: certificate not valid for name \"h\"; \
                 certificate is only valid for DnsName(\"e\")",
                certificate(Doubt::Name),
            ),
            (
                "cause: invalid peer certificate: certificate expired: verification time",
                certificate(Doubt::Time),
            ),
            (
                "WARNING: Retrying (Retry(total=0)) after connection broken by 'SSLError(\
                 SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify \
                 failed: unable to get local issuer certificate (_ssl.c:1006)'))'\nERROR: Could \
                 not find a version that satisfies the requirement x (from versions: none)",
                certificate(Doubt::Authority),
            ),
            (
                "Caused by SSLError(CertificateError(\"hostname 'localhost' doesn't match 'e'\"))",
                certificate(Doubt::Name),
            ),
            (
                "fatal: unable to access 'https://h/r/': server certificate verification failed. \
                 CAfile: none CRLfile: none",
                Cause::Certificate {
                    asked: Asked::Git,
                    doubt: Doubt::Authority,
                },
            ),
            (
                "fatal: unable to access 'https://h/r/': SSL certificate problem: unable to get \
                 local issuer certificate",
                Cause::Certificate {
                    asked: Asked::Git,
                    doubt: Doubt::Authority,
                },
            ),
            (
                "cause: client error (Connect)\n  cause: tunnel error: failed to create underlying \
                 connection\n  cause: tcp connect error\n  cause: Connection refused",
                Cause::Proxy,
            ),
            (
                "WARNING: Retrying (Retry(total=0)) after connection broken by \
                 'ProxyError('Cannot connect to proxy.', OSError('Tunnel connection failed: 407'",
                Cause::Proxy,
            ),
            (
                "write failed: No space left on device (os error 28)",
                Cause::DiskFull,
            ),
            (
                "error: Failed to download and build `six @ git+https://h/x`\n  cause: Git operation \
                 failed\n  cause: Git executable not found. Ensure that Git is installed and available.",
                Cause::NoGit("six @ git+https://h/x".into()),
            ),
            (
                "  ERROR: Error [Errno 2] No such file or directory: 'git' while executing command git \
                 version\nERROR: Cannot find command 'git' - do you have 'git' installed and in your \
                 PATH?",
                Cause::NoGit(UNNAMED.into()),
            ),
            ("something else", Cause::Other),
        ] {
            let lines: Vec<String> = words.lines().map(str::to_owned).collect();
            assert_eq!(classify(&lines), cause, "{words}");
        }
    }

    #[test]
    fn the_cause_in_the_tools_own_words() {
        let build = Cause::Build("x".into());
        for (cause, words, expected) in [
            (
                Cause::Conflict,
                "error: No solution found when resolving dependencies\n  cause: Because a==1 \
                 depends on b<2 and\n      you require b==2, we can conclude that your \
                 requirements are unsatisfiable.",
                "Because a==1 depends on b<2 and you require b==2",
            ),
            (
                build,
                "error: Failed to build `x`\n  cause: The build backend returned an error\n  \
                 Traceback (most recent call last):\n    File \"setup.py\", line 1\n  \
                 RuntimeError: no compiler on this moon",
                "RuntimeError: no compiler on this moon",
            ),
            (
                Cause::Network,
                "error: Failed to fetch: http://h/\n  cause: tcp connect error\n  cause: \
                 Connection refused (os error 111)",
                "Connection refused (os error 111)",
            ),
            (
                Cause::Other,
                "Resolved 1 package\nerror: Failed to download `x`\n  cause: Hash mismatch for `x`",
                "Failed to download `x`: Hash mismatch for `x`",
            ),
            (Cause::NoSuchPackage("x".into()), "error: x", ""),
            (
                certificate(Doubt::Authority),
                "Could not fetch URL https://h/: There was a problem confirming the ssl certificate: \
                 [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local \
                 issuer certificate (_ssl.c:1006)'))) - skipping\nERROR: No matching distribution \
                 found for x",
                "certificate verify failed: unable to get local issuer certificate",
            ),
        ] {
            let lines: Vec<String> = words.lines().map(str::to_owned).collect();
            assert_eq!(detail(&cause, &lines), expected);
        }
        let long = [format!("error: {}", "é".repeat(400))];
        assert!(detail(&Cause::Other, &long).ends_with("é …"));
    }
}
