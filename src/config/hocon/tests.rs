use super::*;

fn env() -> BTreeMap<String, String> {
    [("HOME", "/h"), ("PORT", "8008"), ("path", "/bin")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into()
}

fn json(text: &str) -> String {
    match parse_text("t", text, &env()) {
        Ok(object) => object.to_json().to_string(),
        Err(error) => panic!("{text:?}: {error}"),
    }
}

/// The answers are those of the SDK's parser.
#[test]
fn values() {
    for (text, expected) in [
        // Keys and separators.
        ("", "{}"),
        ("{}", "{}"),
        ("# only a comment", "{}"),
        ("a = 1\nb: 2", r#"{"a":1,"b":2}"#),
        ("{ a = 1, b: 2, }", r#"{"a":1,"b":2}"#),
        (
            "\n{\n\"a\" = 1\r\n\"b\": 2 // c\n}\n# end\n",
            r#"{"a":1,"b":2}"#,
        ),
        ("a { b { c: 1 } }", r#"{"a":{"b":{"c":1}}}"#),
        ("a\n{\n b: 1 }", r#"{"a":{"b":1}}"#),
        ("a.b.c: 1, a.b.d: 2", r#"{"a":{"b":{"c":1,"d":2}}}"#),
        ("\"a.b\": 1", r#"{"a.b":1}"#),
        ("a b: 1", r#"{"a b":1}"#),
        ("\"a \" : 1", r#"{"a ":1}"#),
        ("\"a\\r\": 1", r#"{"a\r":1}"#),
        ("a/b-c_d: 1", r#"{"a/b-c_d":1}"#),
        ("0: a, 1: b", r#"{"0":"a","1":"b"}"#),
        ("include: 1", r#"{"include":1}"#),
        ("a =\n  1", r#"{"a":1}"#),
        ("a: # why\n 1", r#"{"a":1}"#),
        ("a:\nb", r#"{"a":"b"}"#),
        ("a:\n/x/y", r#"{"a":"/x/y"}"#),
        ("a: , b: 1", r#"{"a":"","b":1}"#),
        ("x { a: }", r#"{"x":{"a":""}}"#),
        ("a = 1 # c\n# d\nb = 2", r#"{"a":1,"b":2}"#),
        // Scalars.
        (
            "a: True, b: FALSE, c: Null, d: truey",
            r#"{"a":true,"b":false,"c":null,"d":"truey"}"#,
        ),
        (
            "a: -5, b: +5, c: .5, d: 1e3, e: 1.5E-2",
            r#"{"a":-5,"b":5,"c":0.5,"d":1000.0,"e":0.015}"#,
        ),
        (
            "a: 10GB, b: 5%, c: 1.2.3, d: 12:30, e: 1-2",
            r#"{"a":"10GB","b":"5%","c":"1.2.3","d":"12:30","e":"1-2"}"#,
        ),
        ("a: 10 GB", r#"{"a":"10 GB"}"#),
        ("a: two words  # c", r#"{"a":"two words"}"#),
        (
            "a: ~/.clearml/x, b: /usr/bin/python3",
            r#"{"a":"~/.clearml/x","b":"/usr/bin/python3"}"#,
        ),
        ("a: http://h:8008/x // c", r#"{"a":"http://h:8008/x"}"#),
        ("a: file:///x", r#"{"a":"file:///x"}"#),
        (
            "a: nvidia/cuda:11.0.3-cudnn8",
            r#"{"a":"nvidia/cuda:11.0.3-cudnn8"}"#,
        ),
        ("a: <20.2", r#"{"a":"<20.2"}"#),
        ("a: 'x y'", r#"{"a":"'x y'"}"#),
        (r#"a: "x # y, {z}""#, r#"{"a":"x # y, {z}"}"#),
        (
            r#"a: "q\"\\ \t\n \d+ \. \=""#,
            r#"{"a":"q\"\\ \t\n \\d+ \\. ="}"#,
        ),
        (r#"a: "C:\users""#, r#"{"a":"C:\\users"}"#),
        (r#"a: """x "y" \n"""" "#, r#"{"a":"x \"y\" \\n\""}"#),
        ("a: \"\"\"l1\n l2\"\"\"", r#"{"a":"l1\n l2"}"#),
        ("a: \"\", b: \" x \"", r#"{"a":"","b":" x "}"#),
        ("a: one \\\n  two", r#"{"a":"one two"}"#),
        (r"a: x\#y\=z", r#"{"a":"x#y=z"}"#),
        ("a: é ü", r#"{"a":"é ü"}"#),
        // Lists.
        ("a: [1, b, \"c d\", ]", r#"{"a":[1,"b","c d"]}"#),
        ("a: [\n 1\n 2, # x\n\n 3\n]", r#"{"a":[1,2,3]}"#),
        (
            "a = [{x: 1}, {y: 2}]\nb: []",
            r#"{"a":[{"x":1},{"y":2}],"b":[]}"#,
        ),
        ("a: [[1, 2], []]", r#"{"a":[[1,2],[]]}"#),
        ("a: [# c\n]", r#"{"a":[]}"#),
        ("a: [\"pytorch\", \"x\", ]", r#"{"a":["pytorch","x"]}"#),
        // Duplicates.
        ("a: 1, a: 2", r#"{"a":2}"#),
        ("a { x: 1 }, a { y: 2 }, a.x: 3", r#"{"a":{"x":3,"y":2}}"#),
        ("a: [1], a: [2]", r#"{"a":[2]}"#),
        ("a { x: 1 }, a: null", r#"{"a":null}"#),
        // Concatenation.
        ("a: {x: 1} {y: 2}", r#"{"a":{"x":1,"y":2}}"#),
        ("a: [1] [2]", r#"{"a":[1,2]}"#),
        ("a: \"x\" y \"z\"", r#"{"a":"x y z"}"#),
        ("a: \"x\"\"y\"", r#"{"a":"xy"}"#),
        ("a = [1], a += [2]", r#"{"a":[1,2]}"#),
        ("a += [2]", r#"{"a":[2]}"#),
        // Substitutions.
        ("a: 1, b: ${a}", r#"{"a":1,"b":1}"#),
        (
            "b: ${a.x}, a { x: {y: 2} }",
            r#"{"b":{"y":2},"a":{"x":{"y":2}}}"#,
        ),
        ("a: ${HOME}/x", r#"{"a":"/h/x"}"#),
        ("a: ${HOME} x", r#"{"a":"/h x"}"#),
        (
            "a: \"http://h:\"${PORT}\"/x\"",
            r#"{"a":"http://h:8008/x"}"#,
        ),
        ("a: \"${HOME}\"", r#"{"a":"${HOME}"}"#),
        ("a: ${?NONE}", "{}"),
        ("a: 1, a: ${?NONE}", r#"{"a":1}"#),
        ("a: x${?NONE}y", r#"{"a":"xy"}"#),
        ("a: [1, 2], b: ${a} [3]", r#"{"a":[1,2],"b":[1,2,3]}"#),
        ("a: /x, a: ${a}:/y", r#"{"a":"/x:/y"}"#),
        ("path: ${path}:/y", r#"{"path":"/bin:/y"}"#),
        ("a { x: 1, y: ${a.x} }", r#"{"a":{"x":1,"y":1}}"#),
        ("a: ${b}, b: ${c}, c: 3", r#"{"a":3,"b":3,"c":3}"#),
    ] {
        assert_eq!(json(text), expected, "{text}");
    }
}

/// Where the SDK's parser fails or loses something, the HOCON specification is followed.
#[test]
fn more_than_the_sdk_parser() {
    for (text, expected) in [
        ("a { x: 1 }, a: 5, a { y: 2 }", r#"{"a":{"y":2}}"#),
        (
            "a {x: 1}, b: ${a} {y: 2}, b.z: 3",
            r#"{"a":{"x":1},"b":{"x":1,"y":2,"z":3}}"#,
        ),
        ("a: [${HOME}, ${?NONE}]", r#"{"a":["/h"]}"#),
        ("a.\"b.c\".d: 1", r#"{"a":{"b.c":{"d":1}}}"#),
        ("a = [1], a += 2", r#"{"a":[1,2]}"#),
        ("a += x, a += y", r#"{"a":["x","y"]}"#),
        ("a = x, a += y", r#"{"a":"x y"}"#),
        ("a: [\"\", x]", r#"{"a":["","x"]}"#),
        ("a: text true", r#"{"a":"text true"}"#),
        ("a: x 007", r#"{"a":"x 007"}"#),
        ("a: true, b: x${a}", r#"{"a":true,"b":"xtrue"}"#),
        (r#"a: "\u00e9\/""#, r#"{"a":"é/"}"#),
        ("a: {b: 5}, a: ${a.b}", r#"{"a":5}"#),
        ("a: ${?a}", "{}"),
        ("a: ${?a} [1]", r#"{"a":[1]}"#),
        ("x: [1], x: ${x} [2], x += 3", r#"{"x":[1,2,3]}"#),
        ("m: {a: [1 2]} // c", r#"{"m":{"a":["1 2"]}}"#),
    ] {
        assert_eq!(json(text), expected, "{text}");
    }
}

#[test]
fn numbers_keep_their_text() {
    let object = parse_text("t", "python: 3.10", &env()).unwrap();
    assert_eq!(object.at("python"), Some(&Value::Number("3.10".into())));
}

#[test]
fn errors_say_where_and_what() {
    for (text, expected) in [
        (
            "a = 1\nb = [1, 2\nc {\n}",
            "3:3: found `{`, expected the end of the value (is a closing bracket missing before this?)",
        ),
        (
            "a {\n  b = 1\n",
            "3:1: found the end of the file, expected a key, or `}` for the `{` of line 1",
        ),
        (
            "a = 1\n}\n",
            "2:1: found `}`, expected a key or the end of the file",
        ),
        (
            "a {\n b = [1, 2\n}",
            "3:1: found `}`, expected a value, or `]` for the `[` of line 2",
        ),
        (
            "a: \"x\nb: 1",
            "1:4: found a `\"` that is not closed, expected another `\"` on the same line",
        ),
        (
            "a: \"\"\"x",
            "1:4: found a `\"\"\"` that is not closed, expected another `\"\"\"` further on",
        ),
        (
            "user:\npass: x",
            "1:6: found the end of the line, expected a value for `user` (an empty one is written \"\")",
        ),
        (
            "user = \n\n  name = x",
            "1:7: found the end of the line, expected a value for `user` (an empty one is written \"\")",
        ),
        (
            "a {\n word\n}",
            "2:6: found the end of the line, expected a value for `word` (an empty one is written \"\")",
        ),
        (
            "a \"b\" [1]",
            "1:7: found `[`, expected `=`, `:` or `{` after the key `a \"b\"`",
        ),
        (
            "a: x@y",
            "1:5: found `@`, expected the end of the value (text with `@` in it needs double quotes)",
        ),
        (
            "a: b = c",
            "1:6: found `=`, expected the end of the value (text with `=` in it needs double quotes)",
        ),
        (
            "a: $HOME",
            "1:4: found `$`, expected `${`, or double quotes around a text with `$` in it",
        ),
        (
            "a: ${HOME",
            "1:4: found a `${` that is not closed, expected `}` on the same line",
        ),
        ("a: ${}", "1:6: found `}`, expected a key"),
        (" = 1", "1:2: found `=`, expected a key"),
        (
            "[1]",
            "1:1: found `[`, expected a section or a key, not a list",
        ),
        ("a: [1] x", "1:8: found `x`, expected the end of the value"),
        ("a: {} [1]", "1:7: found `[`, expected the end of the value"),
        (
            "a: 1\n b: x ${none.x}",
            "2:7: found `${none.x}`, expected the name of a key or of an environment variable (`${?…}` if it may be missing)",
        ),
        (
            "b: [1], a: x ${b}",
            "found text next to a list, expected values of one kind side by side",
        ),
        (
            "a: ${b} {x: 2}, b {x: 1, y: ${a.x}}",
            "1:29: found `${a.x}`, expected something that does not lead back to itself",
        ),
        (
            "a: ${b}, b: ${a}",
            "expected something that does not lead back to itself",
        ),
        (
            "a: 1, a += 2",
            "1:9: found `+=` for a key that is a number, expected `+=` for a list",
        ),
        (
            "include x",
            "1:10: found the end of the line, expected a value for `include x`",
        ),
        (
            "include url(\"http://h/x\")",
            "1:9: found `u`, expected the path of a file",
        ),
        (
            "include \"http://h/x\"",
            "1:9: found an address, expected the path of a file on this machine",
        ),
    ] {
        let error = match parse_text("t", text, &env()) {
            Ok(object) => panic!("{text:?} gave {}", object.to_json()),
            Err(HoconError::Syntax(e)) => {
                format!(
                    "{}:{}: found {}, expected {}",
                    e.line, e.column, e.found, e.expected
                )
            }
            Err(other) => panic!("{other}"),
        };
        assert!(error.contains(expected), "{text:?}: {error}");
    }
}

#[test]
fn nesting_has_an_end() {
    for text in [
        format!("a: {}", "[".repeat(100_000)),
        format!("{}a: 1", "a.".repeat(100_000)),
        format!("{}a {{ a: 1 }}", "a.".repeat(100)),
    ] {
        let error = parse_text("t", &text, &env()).unwrap_err().to_string();
        assert!(error.contains("at most 100 levels"), "{}", &error[..200]);
    }
    assert!(parse_text("t", &format!("{}a: 1", "a.".repeat(99)), &env()).is_ok());
}

/// Neither the stack nor memory nor time is used up by what a file leads to.
#[test]
fn substitutions_have_an_end() {
    let lines =
        |count: usize, line: fn(usize) -> String| -> String { (0..count).map(line).collect() };
    let chain = |i: usize| format!("a{i} = ${{a{}}}\n", i + 1);
    let doubled = |i: usize| format!("a{i} = ${{a{0}}}${{a{0}}}\n", i + 1);
    for (text, expected) in [
        (
            format!("{}a2000 = 1", lines(2000, chain)),
            "fewer substitutions that lead to substitutions",
        ),
        (
            format!("{}a40 = xxxxxxxx", lines(40, doubled)),
            "substitutions that come to less text",
        ),
        (
            format!("b = ${{a0.x}}\n{}a40 {{ x: 1 }}", lines(40, doubled)),
            "substitutions that come to less text",
        ),
    ] {
        let error = parse_text("t", &text, &env()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let all = json(&format!("{}a100 = 1", lines(100, chain)));
    assert_eq!(all.matches(":1").count(), 101);
}

#[test]
fn a_list_grows_by_any_number_of_lines() {
    let list = json(&"a += 1\n".repeat(20_000));
    assert_eq!(list.matches('1').count(), 20_000);
}

#[test]
fn files_include_files() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("keys.conf", "access_key: A\nsecret_key: ${prefix}S");
    write("loop.conf", "include \"loop.conf\"");
    write("bad.conf", "\n x = }");
    let parse = |text: &str| {
        write("main.conf", text);
        parse_file(&folder.path().join("main.conf"), &env())
    };
    let object = parse(
        "prefix: p-\ncredentials {\n include file(\"keys.conf\")\n access_key: B\n}\n\
         include \"not-there.conf\"\nwith { include required(file(\"keys.conf\")) }",
    )
    .unwrap();
    assert_eq!(
        object.to_json().to_string(),
        r#"{"prefix":"p-","credentials":{"access_key":"B","secret_key":"p-S"},"with":{"access_key":"A","secret_key":"p-S"}}"#
    );
    for (text, expected) in [
        (
            "include required(\"not-there.conf\")",
            "not-there.conf, which cannot be read",
        ),
        ("include \"loop.conf\"", "no file that includes itself"),
        (
            "include \"bad.conf\"",
            "bad.conf, line 2, column 6: found `}`",
        ),
        (
            "include file(\"bad.conf\"",
            "found the end of the file, expected `)`",
        ),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.conf");
    std::fs::write(&path, b"a = 1\nb = \xff\n").unwrap();
    let error = parse_file(&path, &env()).unwrap_err().to_string();
    assert!(
        error.ends_with("x.conf: line 2 is not UTF-8 text"),
        "{error}"
    );
    std::fs::write(&path, "\u{feff}a = 1").unwrap();
    assert_eq!(
        parse_file(&path, &env()).unwrap().to_json().to_string(),
        r#"{"a":1}"#
    );
}

/// Every text gives values or an error, whatever is missing from it or stands where it should not.
#[test]
fn no_text_is_too_broken() {
    let whole = "a { b.\"c\" = 1 // x\n d: [1, \"e\\n\" ~/f, {g: null}]\n h = ${a.d} [2]\n\
                 i += ${?HOME}/x \\\n y\n k: \"\"\"l\"\"\"\" }\r\n# é\nm: 1.5e3, n: \"\\u00e9\"";
    assert!(parse_text("t", whole, &env()).is_ok());
    let extra = "{}[]\"$\\,:=+#/.e-\u{e9}\n0 ";
    for (at, c) in whole.char_indices() {
        let rest = &whole[at + c.len_utf8()..];
        let mut texts = vec![whole[..at].to_owned(), format!("{}{rest}", &whole[..at])];
        texts.extend(
            extra
                .chars()
                .map(|x| format!("{}{x}{c}{rest}", &whole[..at])),
        );
        for text in texts {
            if let Err(error) = parse_text("t", &text, &env()) {
                assert!(error.to_string().starts_with("t, line "), "{text}: {error}");
            }
        }
    }
}
