use super::*;

fn parse(words: &[&str]) -> Result<RunArgs, RunArgsError> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    RunArgs::parse(&words)
}

fn body(line: &str) -> serde_json::Value {
    let words = split(line).unwrap();
    let args = RunArgs::parse(&words).unwrap_or_else(|error| panic!("{line}: {error}"));
    let env = BTreeMap::from([("HERE".to_owned(), "of the agent".to_owned())]);
    let host = Host {
        env: &env,
        cwd: Path::new("/work/dir"),
    };
    let body = args.to_create(&host);
    serde_json::to_value(body.unwrap_or_else(|error| panic!("{line}: {error}"))).unwrap()
}

#[test]
fn words_are_flags_as_docker_takes_them_apart() {
    for (line, same) in [
        ("-eA=b", "--env A=b"),
        ("-e=A=b", "--env A=b"),
        ("-e A=b", "--env=A=b"),
        ("-itv /a:/b", "-i -t -v /a:/b"),
        ("-itv=/a:/b", "--volume /a:/b"),
        ("-m1g", "--memory 1g"),
        ("--memory 1g --memory=2g", "-m 2g"),
        ("--init", "--init=true"),
        ("--init=false --init", "--init=1"),
        ("-P=false", ""),
        ("--net host", "--network=host"),
        ("--net-alias a --net n", "--network n --network-alias a"),
        ("--dns-opt a", "--dns-option a"),
        ("--memory-swap -1", "--memory-swap=-1"),
        ("-e -A", "--env=-A"),
        ("--env= -e A=", "-e A="),
    ] {
        if line == "--env= -e A=" {
            let error = RunArgs::parse(&split(line).unwrap()).unwrap_err();
            assert!(
                error.to_string().contains("a variable has a name"),
                "{error}"
            );
            continue;
        }
        assert_eq!(body(line), body(same), "{line}");
    }
}
