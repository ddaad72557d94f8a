#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| redis_proxy_fuzz::rest_request::check(input));
