use super::*;
use crate::python::Variables;
use crate::python::requirements::{Reading, parse};
use std::path::Path;

fn list(text: &str) -> List {
    let env = Variables::new();
    let root = Path::new("/checkout");
    let reading = Reading {
        origin: "test",
        folder: root,
        root,
        env: &env,
        original: None,
    };
    parse(text, &reading).unwrap()
}

/// For conda, and for pip.
fn divided(
    pip: &str,
    conda: Option<&str>,
    channels: &[&str],
    cuda: Option<u32>,
) -> (String, String) {
    let channels: Vec<String> = channels.iter().map(|c| (*c).to_owned()).collect();
    let facts = Facts {
        channels: &channels,
        cuda: cuda.map(|major| cuda::Version(major, 2)),
    };
    let divided = divide(list(pip), conda, facts);
    let specs: Vec<String> = divided.conda.iter().map(Spec::text).collect();
    let pip = divided.pip.file();
    let pip: Vec<&str> = pip.lines().collect();
    (specs.join(" "), pip.join(" | "))
}

#[test]
fn what_conda_is_asked_for_and_what_pip() {
    let forge = &["conda-forge", "nvidia"][..];
    let all = &["pytorch", "nvidia"][..];
    for (pip, conda, channels, cuda, for_conda, for_pip) in [
        // A list of pip alone: whatever conda could have.
        (
            "six==1.16.0\nA_b>=1,<2.post1\nruamel.yaml\n",
            None,
            forge,
            None,
            "six~=1.16.0 a-b>=1,<2 ruamel.yaml",
            "",
        ),
        (
            "x==3\ny==1.*\nz==2.0rc1\nv==1!2.0",
            None,
            forge,
            None,
            "x~=3.0 y=1 z==2.0rc1 v==1!2.0",
            "",
        ),
        (
            "a[b]==1\nc==1 ; python_version < '4'\nd @ https://h/d.whl\ngit+https://h/e\nf==1+cu1\n\
             clearml==2.0\npip==23\n--pre\n",
            None,
            forge,
            None,
            "",
            "a[b]==1 | c==1 ; python_version < '4' | d @ https://h/d.whl | git+https://h/e | f==1+cu1 \
             | clearml==2.0 | --pre",
        ),
        ("clearml==2.0", None, &["clearml"], None, "clearml~=2.0", ""),
        // Both lists: conda's says what is conda's, pip's says in which version.
        (
            "python==3.11.7\nnumpy==1.26.4\nsix==1.16.0\ntorch==2.1.0",
            Some(
                "# Conda\nnumpy==1.26.3\npytorch=2.0=py311_0\n_libgcc_mutex==0.1\npython==3.11\nzlib",
            ),
            forge,
            None,
            "numpy~=1.26.4 pytorch~=2.1.0 zlib",
            "six==1.16.0",
        ),
        ("six==1.16.0", Some(""), forge, None, "", "six==1.16.0"),
        // CUDA.
        ("torch", None, all, None, "pytorch cpuonly", ""),
        ("torch", None, forge, None, "pytorch", ""),
        (
            "torch",
            None,
            all,
            Some(12),
            "pytorch cuda-toolkit=12.2",
            "",
        ),
        (
            "torch",
            None,
            &["pytorch"],
            Some(11),
            "pytorch cudatoolkit=11.2",
            "",
        ),
        ("six", None, all, Some(12), "six", ""),
        (
            "tensorflow==2.4.1",
            None,
            forge,
            Some(11),
            "tensorflow-gpu~=2.4.1 cuda-toolkit=11.2",
            "",
        ),
        (
            "tensorflow_gpu==2.4.1",
            None,
            forge,
            None,
            "tensorflow~=2.4.1",
            "",
        ),
        (
            "",
            Some("cudatoolkit==11.1.74\ncudnn==8.0"),
            forge,
            Some(11),
            "cudatoolkit=11.1",
            "",
        ),
        (
            "",
            Some("cudatoolkit==12.1\nzlib"),
            forge,
            Some(11),
            "zlib",
            "",
        ),
        ("", Some("cudatoolkit==11.1\nzlib"), forge, None, "zlib", ""),
    ] {
        let found = divided(pip, conda, channels, cuda);
        let expected = (for_conda.to_owned(), for_pip.to_owned());
        assert_eq!(found, expected, "{pip} {conda:?} {channels:?} {cuda:?}");
    }
}

#[test]
fn what_pip_gets_when_conda_has_it_not() {
    let facts = Facts {
        channels: &[],
        cuda: None,
    };
    let divided = divide(list("Torch==2.1.0+cpu"), Some("zlib=1.2=h1\nfoo>=2"), facts);
    let lines: Vec<&str> = divided
        .conda
        .iter()
        .filter_map(|spec| match &spec.otherwise {
            Otherwise::Pip(Line::Package { text, .. }) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(lines, ["zlib==1.2", "foo>=2"]);
}

#[test]
fn an_exported_environment() {
    let json = r#"{"dependencies": ["python=3.11.7=h9_0", "pip=23.1", "_x=1", "cudnn=8", "numpy=1.26.4=py311_0",
        "tensorflow-gpu=2.4.1", {"pip": ["six==1.16.0", "virtualenv==20"]}]}"#;
    let facts = Facts {
        channels: &[],
        cuda: None,
    };
    let found = exported(json, facts).unwrap();
    assert_eq!(
        found.dependencies,
        ["numpy=1.26.4=py311_0", "tensorflow=2.4.1"]
    );
    assert_eq!(found.pip, ["six==1.16.0"]);
    assert_eq!(found.python.as_deref(), Some("3.11"));
    assert_eq!(exported("{}", facts), None);
    for (list, python) in [
        ("numpy==1\npython==3.9.18", Some("3.9")),
        ("python=3.10", Some("3.10")),
        ("python-dateutil==2.8.2\npython", None),
    ] {
        assert_eq!(python_of(list).as_deref(), python, "{list}");
    }
}
