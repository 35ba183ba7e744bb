#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| clearml_agent::fuzzing::docker_args(input));
