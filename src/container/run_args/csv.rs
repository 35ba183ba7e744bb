//! One line of comma-separated values as Go's `encoding/csv` reads it: what `--gpus`, `--mount` and
//! `--network` are made of. A field that begins with a quote ends with one and may hold commas.

pub(super) fn fields(line: &str) -> Result<Vec<String>, String> {
    let line = line.trim_start_matches(['\n', '\r']);
    if line.is_empty() {
        return Err("it is empty".into());
    }
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let end = rest.find(',').unwrap_or(rest.len());
            let field = &rest[..end];
            if field.contains('"') {
                return Err(format!(
                    "a quote in the middle of {field:?}; put the whole in quotes"
                ));
            }
            fields.push(field.to_owned());
            match rest.get(end + 1..) {
                Some(after) => rest = after,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        let mut after = quoted;
        loop {
            let end = after.find('"').ok_or("a quote is not closed")?;
            field.push_str(&after[..end]);
            after = &after[end + 1..];
            match after.strip_prefix('"') {
                // Two quotes in quotes are one.
                Some(more) => {
                    field.push('"');
                    after = more;
                }
                None => break,
            }
        }
        fields.push(field);
        match (after.is_empty(), after.strip_prefix(',')) {
            (true, _) => return Ok(fields),
            (false, Some(more)) => rest = more,
            (false, None) => return Err("something follows a closing quote".into()),
        }
    }
}
