//! Kept environments whose package index was away, or had not all, when they were built.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;
#[path = "common/cache_machine.rs"]
mod cache_machine;
#[path = "common/index.rs"]
mod index;

use std::time::Duration;

use bench::Bench;
use cache_machine::Machine;
use clearml_agent::python::settings::Installer;
use clearml_agent::secret::Secret;
use index::PackageIndex;
use serde_json::json;

/// A run with this index alone, which is asked once for each thing.
fn with_index(machine: &Machine, index: &PackageIndex, installer: Installer) -> Bench {
    let mut bench = machine.bench();
    bench.settings.installer = installer;
    bench.settings.pip_version.clear();
    bench.settings.indexes.url = Some(Secret::new(index.url()));
    for name in ["UV_HTTP_RETRIES", "PIP_RETRIES"] {
        let env = &mut bench.settings.environment;
        env.insert(name.into(), "0".into());
    }
    bench
}

#[tokio::test]
async fn what_is_lacking_for_a_passing_reason_is_tried_again() {
    let packages = [("needed", "1"), ("extra-a", "1"), ("extra-b", "1")];
    for (installer, failing) in [
        (Installer::Uv, ["extra-a", "extra-b"]),
        (
            Installer::Uv,
            ["extra_a-1-py3-none-any.whl", "extra_b-1-py3-none-any.whl"],
        ),
        (Installer::Pip, ["extra-a", "extra-b"]),
    ] {
        let machine = Machine::new();
        let index = PackageIndex::start(&packages, None).await;
        let run = async || {
            let mut bench = with_index(&machine, &index, installer);
            bench.settings.optional_packages = vec!["extra_a".into(), "extra-b".into()];
            let list = "needed==1\nextra-a==1\nextra-b==1";
            let done = bench.runs("", json!({ "pip": list })).await;
            (done.recorded()["pip"].clone(), bench.said())
        };
        for (failing, installed) in [
            (&failing[..], json!(["needed==1"])),
            (&failing, json!(["needed==1"])),
            (&failing[1..], json!(["extra-a==1", "needed==1"])),
            (&[], json!(["extra-a==1", "extra-b==1", "needed==1"])),
        ] {
            index.fail(failing);
            let (recorded, said) = run().await;
            assert_eq!(recorded, installed, "{installer:?} {failing:?} {said}");
            if !failing.is_empty() {
                assert!(said.contains("not in it is "), "{said}");
            }
        }
        // Whole, it is asked for nothing more.
        let before = index.asked().len();
        let (_, said) = run().await;
        assert!(said.contains("from the cache"), "{said}");
        assert_eq!(index.asked().len(), before, "{said}");
    }
}

#[tokio::test]
async fn what_no_index_has_is_looked_for_again_as_newer_versions_are() {
    let mut machine = Machine::new();
    let index = PackageIndex::start(&[("needed", "1")], None).await;
    let run = async |machine: &Machine| {
        let mut bench = with_index(machine, &index, Installer::Uv);
        bench.settings.optional_packages = vec!["nowhere".into()];
        let _ = bench
            .runs("", json!({"pip": "needed==1\nnowhere==1"}))
            .await;
        bench.said()
    };
    let said = run(&machine).await;
    assert!(said.contains("no index has nowhere"), "{said}");
    assert!(!said.contains("Installing with pip"), "{said}");
    let before = index.asked().len();
    let said = run(&machine).await;
    assert!(said.contains("not in it is nowhere"), "{said}");
    assert_eq!(index.asked().len(), before, "{said}");
    machine.change = |settings| settings.resolve_after = Some(Duration::ZERO);
    let said = run(&machine).await;
    assert!(index.asked().len() > before, "{said}");
    assert!(said.contains("from the cache"), "{said}");
    assert!(!said.contains("can't be found out"), "{said}");
}

#[tokio::test]
async fn the_usual_pytorch_is_kept_only_until_the_right_index_answers() {
    use clearml_agent::python::cuda;
    let right = PackageIndex::start(&[("torch", "2.3.1+cu121")], None).await;
    let usual = PackageIndex::start(&[("torch", "2.3.1")], None).await;
    for (installer, list) in [
        (Installer::Uv, "torch==2.3.1"),
        (Installer::Uv, "torch"),
        (Installer::Pip, "torch==2.3.1"),
    ] {
        let machine = Machine::new();
        let run = async |template: &str, resolve_after: Option<Duration>| {
            let mut bench = with_index(&machine, &usual, installer);
            bench.settings.cuda = cuda::Wanted::This(cuda::Version(12, 1));
            bench.settings.torch.template = template.into();
            let cache = bench.settings.venvs_cache.as_mut().unwrap();
            cache.resolve_after = resolve_after;
            let done = bench.runs("", json!({ "pip": list })).await;
            (done.recorded()["pip"][0].clone(), bench.said())
        };
        let template = right.cuda_template();
        let day = Some(Duration::from_secs(86400));
        right.fail(&["torch"]);
        for how in ["built and kept", "from the cache"] {
            let (torch, said) = run(&template, day).await;
            assert_eq!(torch, "torch==2.3.1", "{installer:?} {said}");
            assert!(said.contains(how), "{installer:?} {list} {said}");
            assert!(
                said.contains("when it was built, PyTorch's index"),
                "{said}"
            );
        }
        right.fail(&[]);
        for how in ["answers now", "from the cache"] {
            let (torch, said) = run(&template, day).await;
            assert_eq!(torch, "torch==2.3.1+cu121", "{installer:?} {said}");
            assert!(said.contains(how), "{installer:?} {list} {said}");
        }
        // Nor does the right one give way to the usual one.
        right.fail(&["torch"]);
        let (torch, said) = run(&template, Some(Duration::ZERO)).await;
        assert_eq!(torch, "torch==2.3.1+cu121", "{installer:?} {said}");
        right.fail(&[]);
    }
}

#[tokio::test]
async fn a_pytorch_index_that_nobody_reaches_is_not_asked_by_each_run() {
    use clearml_agent::python::cuda;
    let usual = PackageIndex::start(&[("torch", "2.3.1")], None).await;
    let machine = Machine::new();
    for asked in [true, false] {
        let mut bench = with_index(&machine, &usual, Installer::Uv);
        bench.settings.cuda = cuda::Wanted::This(cuda::Version(12, 1));
        bench.settings.torch.template = "http://127.0.0.1:9/cu{}/".into();
        let _ = bench.runs("", json!({"pip": "torch==2.3.1"})).await;
        let said = bench.said();
        assert_eq!(said.contains("does not answer"), asked, "{said}");
        assert_eq!(said.contains("from the cache"), !asked, "{said}");
    }
}
