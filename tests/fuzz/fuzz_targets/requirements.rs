#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| clearml_agent::fuzzing::requirements(input));
