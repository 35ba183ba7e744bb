use super::*;
use crate::api::Credentials;
use crate::api::tls::Trust;

fn vars(pairs: &[(&str, &str)]) -> Variables {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

/// Loads `text` as `~/clearml.conf` of an empty home.
fn try_loaded(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("clearml.conf"), text).unwrap();
    let env = vars(env);
    load(&Lookup {
        config_file: None,
        env: &env,
        home: Some(home.path()),
    })
}

fn loaded(text: &str, env: &[(&str, &str)]) -> Config {
    try_loaded(text, env).unwrap()
}

#[test]
fn worker_ids() {
    for (id, name, expected) in [
        (None, None, "node1:42"),
        (None, Some("gpu-box"), "gpu-box:42"),
        (Some("me:gpu0"), Some("gpu-box"), "me:gpu0"),
    ] {
        assert_eq!(worker_id(id, name, "node1", 42), expected);
    }
}

#[test]
fn paths_are_expanded() {
    let env = vars(&[("CACHE", "/c"), ("U", "me")]);
    for (text, path) in [
        ("~", "/h"),
        ("~/x", "/h/x"),
        ("~other/x", "~other/x"),
        ("$CACHE/${U}-x", "/c/me-x"),
        ("$NONE/${NONE}/$", "$NONE/${NONE}/$"),
        ("/a/b", "/a/b"),
    ] {
        assert_eq!(
            expand(text, &env, Some(Path::new("/h"))),
            Path::new(path),
            "{text}"
        );
    }
}

#[test]
fn layers_lie_in_order() {
    let file = r#"
        api { api_server: "http://file:8008/", credentials {"access_key" = "FA", "secret_key" = "FS"} }
        agent { package_manager.type: uv, venvs_cache { max_entries: 3 }, worker_name: file }
    "#;
    let config = loaded(
        file,
        &[
            ("CLEARML_AGENT__API__API_SERVER", "http://override"),
            ("TRAINS_API_HOST", "http://named"),
            ("CLEARML_AGENT__AGENT__WORKER_NAME", "override"),
            ("CLEARML_API_ACCESS_KEY", "EA"),
        ],
    );
    for (key, value) in [
        ("api.api_server", Some("http://named")),
        ("api.credentials.access_key", Some("EA")),
        ("api.credentials.secret_key", Some("FS")),
        ("agent.worker_name", Some("override")),
        ("agent.package_manager.type", Some("uv")),
        ("agent.venvs_cache.max_entries", Some("3")),
        ("agent.venvs_cache.free_space_threshold_gb", Some("2.0")),
        ("agent.git_user", None),
        ("agent.worker_id", None),
        ("agent.package_manager", None),
    ] {
        assert_eq!(config.text(key).as_deref(), value, "{key}");
    }
    assert_eq!(
        config.worker_id(),
        format!("override:{}", std::process::id())
    );
}

#[test]
fn typed_values() {
    let config = loaded(
        r#"x { t: True, yes: "yes", one: 1, word: maybe, none: null, empty: "", n: "2.5", py: 3.10,
               l: [a, 1, null, ""], s: single, o {}, secret_token: word }"#,
        &[],
    );
    for (key, flag) in [("x.t", true), ("x.yes", true), ("x.one", true)] {
        assert_eq!(config.flag(key).unwrap(), Some(flag), "{key}");
    }
    for key in ["x.none", "x.empty", "x.absent", "nothing.there"] {
        assert_eq!(config.flag(key).unwrap(), None);
        assert_eq!(config.number(key).unwrap(), None);
        assert_eq!(config.list(key).unwrap(), Vec::<String>::new());
    }
    assert_eq!(config.number("x.n").unwrap(), Some(2.5));
    assert_eq!(config.text("x.py").as_deref(), Some("3.10"));
    assert_eq!(config.list("x.l").unwrap(), ["a", "1"]);
    assert_eq!(config.list("x.s").unwrap(), ["single"]);
    assert_eq!(config.value("x.l.0"), None);
    assert_eq!(config.value("x.one"), Some(&serde_json::json!(1)));

    let error = config.flag("x.word").unwrap_err().to_string();
    assert!(
        error.starts_with("x.word is \"maybe\", expected true or false (read /"),
        "{error}"
    );
    let error = config.number("x.l").unwrap_err().to_string();
    assert!(
        error.starts_with("x.l is a list, expected a number"),
        "{error}"
    );
    let error = config.flag("x.secret_token").unwrap_err().to_string();
    assert!(
        error.starts_with("x.secret_token is text, expected"),
        "{error}"
    );
    assert!(config.list("x.o").is_err() && config.flag("x.o").is_err());
}

const KEYS: &str = r#"api.credentials { access_key: A, secret_key: "S" }"#;

/// Any file that is there.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

#[test]
fn endpoints() {
    for (text, env, server, trust) in [
        (
            "api.api_server: http://h:8008",
            vec![],
            "http://h:8008/",
            Trust::System,
        ),
        (
            "api.host = \"https://h/api/\"",
            vec![],
            "https://h/api/",
            Trust::System,
        ),
        (
            "api { api_server: \"\", host: http://old }",
            vec![],
            "http://old/",
            Trust::System,
        ),
        (
            "api { api_server: https://h, verify_certificate: False }",
            vec![],
            "https://h/",
            Trust::Anything,
        ),
        (
            "api { api_server: https://h, verify_certificate: \"$D/ca.pem\" }",
            vec![("D", "/etc")],
            "https://h/",
            Trust::Bundle("/etc/ca.pem".into()),
        ),
        (
            "api { api_server: https://h, verify_certificate: true }",
            vec![("CLEARML_API_HOST_VERIFY_CERT", "0")],
            "https://h/",
            Trust::Anything,
        ),
        (
            "api.api_server: https://h",
            vec![("REQUESTS_CA_BUNDLE", FILE)],
            "https://h/",
            Trust::Bundle(FILE.into()),
        ),
        (
            "api.api_server: https://h",
            vec![("CURL_CA_BUNDLE", "/no/such/file")],
            "https://h/",
            Trust::System,
        ),
        (
            "api { api_server: https://h, verify_certificate: /etc/ca.pem }",
            vec![("REQUESTS_CA_BUNDLE", FILE)],
            "https://h/",
            Trust::Bundle("/etc/ca.pem".into()),
        ),
    ] {
        let endpoint = loaded(&format!("{KEYS}\n{text}"), &env)
            .endpoint("w")
            .unwrap();
        assert_eq!(endpoint.api_server.as_str(), server, "{text}");
        assert_eq!(endpoint.trust, trust, "{text}");
        assert_eq!(endpoint.worker, "w");
        match endpoint.credentials {
            Credentials::KeyPair {
                access_key,
                secret_key,
            } => {
                assert_eq!((access_key.expose(), secret_key.expose()), ("A", "S"));
            }
            Credentials::Token(_) => panic!("no token was given"),
        }
    }
}

#[test]
fn a_token_is_stronger_than_keys() {
    let config = loaded(
        &format!("{KEYS}, api.api_server: http://h"),
        &[("CLEARML_AUTH_TOKEN", "tok")],
    );
    match config.endpoint("w").unwrap().credentials {
        Credentials::Token(token) => assert_eq!(token.expose(), "tok"),
        Credentials::KeyPair { .. } => panic!("the token counts"),
    }
}

#[test]
fn what_is_missing_is_said() {
    for (text, expected) in [
        (KEYS, "no API server is configured (read /"),
        (
            "api.api_server: http://h/",
            "no credentials for the API server http://h (read /",
        ),
        (
            "api { api_server: http://h/, credentials.access_key: A }",
            "no secret key for the API server http://h (read /",
        ),
        (
            "api.api_server: \"localhost:8008\"",
            "api.api_server is \"localhost:8008\", which is not",
        ),
        (
            "api.api_server: ftp://u:p@h",
            "api.api_server is \"ftp://u:p@h\"",
        ),
    ] {
        let Err(error) = loaded(&text.replace("u:p@h", "u"), &[]).endpoint("w") else {
            panic!("{text} is not enough");
        };
        let error = error.to_string();
        assert!(
            error.starts_with(&expected.replace("u:p@h", "u")),
            "{error}"
        );
    }
}

#[test]
fn no_file_at_all() {
    let env = vars(&[]);
    let config = load(&Lookup {
        config_file: None,
        env: &env,
        home: None,
    })
    .unwrap();
    assert_eq!(config.file(), None);
    assert_eq!(
        config.text("agent.package_manager.type").as_deref(),
        Some("pip")
    );
    let error = config.endpoint("w").unwrap_err().to_string();
    assert!(
        error.contains("no configuration file: looked for ~/clearml.conf")
            && error.contains("CLEARML_API_HOST"),
        "{error}"
    );
}

#[test]
fn the_job_gets_everything_but_the_agents_logins() {
    let config = loaded(
        r#"
        base: /data
        api { host: "http://h:8008/", credentials { access_key: A, secret_key: S } }
        agent { git_user: u, git_pass: p, git.extra_credentials: [{user: a, pass: b, host: c}], git_host: g }
        agent.package_manager {
          extra_index_url: ["https://u:p@w@i/simple", "https://token@j:8/", "http://k/a@b"]
          extra_pip_install_flags: ["--index-url=https://u:p@i/s", "-f https://u:p@i/f"]
          force_upgrade: true
        }
        environment { CLEARML__AGENT__GIT_PASS: v, PIP_INDEX_URL: "https://u:p@own/simple" }
        sdk.storage.cache.default_base_dir: ${base}/cache
        "#,
        &[
            ("CLEARML_AGENT_GIT_PASS", "e"),
            ("CLEARML_FILES_HOST", "http://f"),
        ],
    );
    let json: serde_json::Value = serde_json::from_str(&config.for_job()).unwrap();
    assert_eq!(
        json,
        serde_json::json!({
            "base": "/data",
            "api": {
                "host": "http://h:8008/",
                "credentials": {"access_key": "A", "secret_key": "S"},
                "files_server": "http://f",
                "api_server": "http://h:8008",
            },
            "agent": {
                "git": {},
                "git_host": "g",
                "package_manager": {
                    "extra_index_url": ["https://i/simple", "https://j:8/", "http://k/a@b"],
                    "extra_pip_install_flags": ["--index-url=https://i/s", "-f https://i/f"],
                    "force_upgrade": true,
                },
            },
            "environment": {"PIP_INDEX_URL": "https://u:p@own/simple"},
            "sdk": {"storage": {"cache": {"default_base_dir": "/data/cache"}}},
        })
    );
}

#[test]
fn variables_for_the_job() {
    let section = "environment { A: 1, B: text here, C: true, D: null, E: \"\" }";
    let expected = vars(&[
        ("A", "1"),
        ("B", "text here"),
        ("C", "True"),
        ("D", ""),
        ("E", ""),
    ]);
    let off = "agent.apply_environment: false\n";
    let switch = |value| vec![("CLEARML_AGENT_ENABLE_ENV_CONFIG_SECTION", value)];
    for (text, env, variables) in [
        (section.to_owned(), vec![], expected.clone()),
        (format!("{off}{section}"), vec![], vars(&[])),
        (format!("{off}{section}"), switch("1"), expected.clone()),
        (section.to_owned(), switch("no"), vars(&[])),
        (String::new(), vec![], vars(&[])),
    ] {
        assert_eq!(
            *loaded(&text, &env).job_variables(),
            variables,
            "{text} {env:?}"
        );
    }
    let error = try_loaded("environment: [1]", &[]).unwrap_err().to_string();
    assert!(
        error.starts_with("environment is a list, expected a section of variables"),
        "{error}"
    );
    let config = loaded(
        "environment { CLEARML_AGENT_GIT_PASS: x, DIR: /d }, p: \"$DIR/p\"",
        &[],
    );
    assert_eq!(config.text("agent.git_pass").as_deref(), Some("x"));
    assert_eq!(config.path("p"), Some("/d/p".into()));
    assert!(!config.for_job().contains("GIT_PASS"));
}

#[test]
fn print_outs_have_no_secrets() {
    let config = loaded(
        r#"
        api { api_server: "http://u:hidden1@h", credentials { access_key: hidden2, secret_key: hidden3 } }
        agent {
          git_user: shown, git_pass: hidden4, enable_git_ask_pass: true
          git.extra_credentials: [{user: shown, pass: hidden5}]
          package_manager.extra_index_url: ["https://u:hidden6@i/simple"]
          extra_docker_arguments: ["-e", "AWS_SECRET=hidden7"]
        }
        sdk.aws.s3.secret: hidden8
        "#,
        &[],
    );
    let shown = config.printable();
    assert!(!shown.contains("hidden"), "{shown}");
    for line in [
        "api.api_server = \"http://u:****@h\"",
        "api.credentials.secret_key = ****",
        "agent.git_user = \"shown\"",
        "agent.git_pass = ****",
        "agent.enable_git_ask_pass = true",
        "agent.package_manager.extra_index_url = [\"https://u:****@i/simple\"]",
        "agent.extra_docker_arguments = [\"-e\",\"AWS_SECRET=****\"]",
    ] {
        assert!(shown.lines().any(|l| l == line), "{line} in\n{shown}");
    }
    assert!(!format!("{config:?}").contains("hidden"));
}
