use super::*;

struct Repository {
    dir: tempfile::TempDir,
    env: Variables,
}

impl Repository {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let env = Variables::from([("TOKEN".into(), "t0k".into())]);
        Self { dir, env }
    }

    fn parse(&self, text: &str) -> Result<List, PythonError> {
        parse(
            text,
            &Reading {
                origin: "the task's packages",
                folder: self.dir.path(),
                root: self.dir.path(),
                env: &self.env,
                original: Some("lost==1.2\nsix>=1"),
            },
        )
    }

    /// The lines given to the installer, with the repository's folder as `ROOT`.
    fn lines(&self, text: &str) -> String {
        let file = self
            .parse(text)
            .unwrap_or_else(|e| panic!("{text}: {e}"))
            .file();
        let root = self.dir.path().to_string_lossy().into_owned();
        file.trim_end().replace(&root, "ROOT").replace('\n', " | ")
    }
}

#[test]
fn lines_are_made_alike_for_uv_and_pip() {
    let repository = Repository::new(&[
        ("dist/x.whl", ""),
        ("pkg/setup.py", ""),
        ("more.txt", "six\n-r sub/deep.txt\n"),
        ("sub/deep.txt", "-c limits.txt\ntabulate\n"),
        ("sub/limits.txt", "six<2"),
        ("sub/our limits.txt", "six<2"),
        ("our wheels/x.whl", ""),
    ]);
    let utf16 = "\u{feff}six # \u{ed}\r\n--pre\r\n".encode_utf16();
    let utf16: Vec<u8> = utf16.flat_map(u16::to_le_bytes).collect();
    std::fs::write(repository.dir.path().join("utf16.txt"), utf16).unwrap();
    for (text, expected) in [
        ("", ""),
        ("# Python 3.11\n\n  \n", ""),
        ("pkg==1.0 # note", "pkg==1.0"),
        (
            "pkg[a,b]>=1,<2 ; python_version < \"3.9\"",
            "pkg[a,b]>=1,<2 ; python_version < \"3.9\"",
        ),
        ("pkg == 1.0.dev0+local", "pkg== 1.0.dev0+local"),
        ("pkg (>=1.0)", "pkg>=1.0"),
        (
            "--extra-index-url=https://h/s",
            "--extra-index-url https://h/s",
        ),
        (
            "--extra-index-url https://u:${TOKEN}@h/s # x",
            "--extra-index-url https://u:t0k@h/s",
        ),
        ("${UNSET}pkg @ https://h/x.whl", "error"),
        ("-i https://h/s\nsix", "--index-url https://h/s | six"),
        ("--pre\nsix", "--pre | six"),
        ("--no-binary :all:", "--no-binary :all:"),
        (
            "six==1 \\\n    --hash=sha256:ab \\\n    --hash=sha256:cd",
            "six==1 --hash=sha256:ab --hash=sha256:cd",
        ),
        ("-r more.txt", "six | -c ROOT/sub/limits.txt | tabulate"),
        ("-rmore.txt", "six | -c ROOT/sub/limits.txt | tabulate"),
        (
            "--requirement=more.txt",
            "six | -c ROOT/sub/limits.txt | tabulate",
        ),
        (
            "-i https://h/s --extra-index-url=https://i/s  --trusted-host 'h' --pre",
            "--index-url https://h/s | --extra-index-url https://i/s | --trusted-host h | --pre",
        ),
        (
            "-r 'more.txt' -c \"sub/our limits.txt\"",
            "six | -c ROOT/sub/limits.txt | tabulate | -c 'ROOT/sub/our limits.txt'",
        ),
        (
            "--find-links=\"our wheels\"",
            "--find-links 'ROOT/our wheels'",
        ),
        ("-r utf16.txt", "six | --pre"),
        ("-e \"our wheels\"", "-e file://ROOT/our%20wheels"),
        ("-e 'pkg'", "-e ROOT/pkg"),
        ("-e .", "-e ROOT"),
        ("-e ./pkg", "-e ROOT/pkg"),
        ("./pkg[extra]", "ROOT/pkg[extra]"),
        ("/abs/pkg", "/abs/pkg"),
        ("./dist/x.whl", "ROOT/dist/x.whl"),
        (
            "-e git+https://h/o/r@main#egg=r",
            "git+https://h/o/r@main#egg=r",
        ),
        (
            "git+https://h/r@rev ; python_version < '3'",
            "git+https://h/r@rev ; python_version < '3'",
        ),
        ("git+git@h:o/r.git@main", "git+ssh://git@h/o/r.git@main"),
        ("git+ssh://git@h:2222/o/r", "git+ssh://git@h:2222/o/r"),
        ("r@git+http://h/r", "r @ git+http://h/r"),
        ("git+http://h/r#egg=x", "git+http://h/r#egg=x"),
        (
            "x @ https://h/x.whl ; os_name == 'nt'",
            "x @ https://h/x.whl ; os_name == 'nt'",
        ),
        ("six @ file:///nowhere/gone", "six"),
        ("lost @ file:///nowhere/gone", "lost==1.2"),
        ("clearml==1.0\nsix\nclearml==2.0", "six | clearml==2.0"),
        (
            "six==1 ; os_name == 'nt'\nsix==2",
            "six==1 ; os_name == 'nt' | six==2",
        ),
        ("torch==2.3.1+cu121", "torch==2.3.1"),
        ("torch>=2,<3", "torch>=2,<3"),
        ("name @ #git.//h", "error"),
        ("name!=x@h", "error"),
    ] {
        if expected == "error" {
            assert!(repository.parse(text).is_err(), "{text}");
        } else {
            assert_eq!(repository.lines(text), expected, "{text}");
        }
    }
}

#[test]
fn an_existing_local_file_stays_what_it_is() {
    let repository = Repository::new(&[("a b/x.whl", "")]);
    let path = repository.dir.path().join("a b");
    let url = url::Url::from_file_path(path.join("x.whl")).unwrap();
    let list = repository
        .parse(&format!("x @ {url} ; os_name == 'posix'"))
        .unwrap();
    let Line::Reference { local, text, .. } = &list.lines[0] else {
        panic!("{list:?}");
    };
    assert_eq!(local.as_deref(), Some(path.join("x.whl").as_path()));
    assert_eq!(*text, format!("x @ {url} ; os_name == 'posix'"));
}

#[test]
fn what_cannot_be_read_is_named_before_anything_is_installed() {
    let repository = Repository::new(&[("loop.txt", "-r loop.txt")]);
    for (text, line, cause) in [
        ("six\nfoo bar", "foo bar", "it is no requirement"),
        ("???", "???", "it is no requirement"),
        ("six=1.0", "six=1.0", "it is no requirement"),
        (
            "-r gone.txt",
            "-r gone.txt",
            "the file is not in the repository",
        ),
        ("-r loop.txt", "-r loop.txt", "in a circle"),
        ("--frobnicate", "--frobnicate", "this option is not known"),
        (
            "--frob https://u:secret@h",
            "--frob https://u:****@h",
            "not known",
        ),
        ("--pre six", "--pre six", "six stands behind an option"),
        ("-f 'wheels", "-f 'wheels", "a quote is not closed"),
    ] {
        let error = repository.parse(text).unwrap_err();
        let words = error.to_string();
        assert!(words.contains(cause), "{words}");
        let PythonError::Requirement { line: found, .. } = error else {
            panic!("{words}");
        };
        assert_eq!(found, line);
    }
}

#[test]
fn a_person_is_told_what_was_changed() {
    let repository = Repository::new(&[]);
    for (text, note) in [
        (
            "six==1\nsix==2",
            "six==1 is in the list as six==2 too: the last one counts",
        ),
        (
            "six @ file:///gone/six",
            "/gone/six is not on this machine: six is taken from the package index instead, in whatever version is newest",
        ),
        (
            "lost @ file:///gone",
            "/gone is not on this machine: lost==1.2 is taken from the package index instead",
        ),
        (
            "-i https://u:p@h/s",
            "the list replaces the package index by https://u:****@h/s",
        ),
    ] {
        assert_eq!(repository.parse(text).unwrap().notes, [note]);
    }
    assert!(repository.parse("six\nsix").unwrap().notes.is_empty());
}

#[test]
fn pins_are_what_the_old_resolver_would_take() {
    let repository = Repository::new(&[]);
    let list = repository
        .parse("requests==2.31.0\nidna == 2.0\nsix>=1\nx==1.*\ny==1 ; os_name == 'nt'")
        .unwrap();
    assert_eq!(list.pins(), "requests==2.31.0\nidna==2.0\n");
}

#[test]
fn tolerated_packages_stand_apart() {
    let repository = Repository::new(&[]);
    let mut list = repository.parse("--pre\nPyGObject==3\nsix").unwrap();
    let apart = list.split_off(&["pygobject".to_owned()]);
    assert_eq!(list.file(), "--pre\nsix\n");
    assert_eq!(apart.len(), 1);
    assert_eq!(apart[0].1.file(), "--pre\nPyGObject==3\n");
}

#[test]
fn names_are_compared_as_indexes_do() {
    for (name, normal) in [
        ("PyGObject", "pygobject"),
        ("a__b.-c", "a-b-c"),
        ("six", "six"),
    ] {
        assert_eq!(normalise(name), normal);
    }
}

#[test]
fn the_repositorys_files_from_the_root_to_the_script() {
    let repository = Repository::new(&[
        ("requirements.txt", ""),
        ("src/requirements.txt", ""),
        ("src/app/requirements.txt", ""),
        ("src/app/main.py", ""),
    ]);
    let root = repository.dir.path();
    for (working_dir, entry_point, expected) in [
        (
            ".",
            "src/app/main.py --x",
            "requirements.txt src/requirements.txt src/app/requirements.txt",
        ),
        ("src", "main.py", "requirements.txt src/requirements.txt"),
        (
            "src",
            "-m app.main",
            "requirements.txt src/requirements.txt",
        ),
        (".", "main.py", "requirements.txt"),
    ] {
        let files = files_in_repository(root, &root.join(working_dir), entry_point);
        let found: Vec<String> = files
            .iter()
            .map(|file| file.strip_prefix(root).unwrap().display().to_string())
            .collect();
        assert_eq!(found.join(" "), expected, "{working_dir} {entry_point}");
    }
}
