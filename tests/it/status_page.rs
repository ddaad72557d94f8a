//! The status page in a real browser.
//!
//! Promise: it shows the counts of `/metrics`, fits every screen, and is readable for everyone.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::browser::{Browser, Scheme};
use crate::support::serving::{await_ready, config, metric, read, reads, set};
use crate::support::{Proxy, RedisServer, clients, eventually};

/// The texts of the page. A table is an object: the first cell of each row, and the others.
const TEXTS: &str = "(() => {
    const text = (id) => document.getElementById(id).textContent;
    const cells = (row) => [...row.children].map((cell) => cell.textContent);
    const rows = (id) => Object.fromEntries([...document.getElementById(id).rows].map((row) => {
        const [first, ...others] = cells(row);
        return [first, others];
    }));
    const texts = ['state', 'ratio', 'total', 'saved', 'memory-bound', 'about'];
    const tables = ['outcomes', 'memory', 'evictions', 'connections', 'nodes', 'keys'];
    return {
        ...Object.fromEntries(texts.map((id) => [id, text(id)])),
        ...Object.fromEntries(tables.map((id) => [id, rows(id)])),
        level: document.getElementById('state').dataset.level,
    };
})()";

/// The pixels by which the page is wider than its screen, and the elements that reach beyond it.
/// On a phone `innerWidth` grows with the page, so it is no measure.
fn overflow(browser: &mut Browser, width: u32) -> Value {
    browser.evaluate(&format!(
        "[
            document.documentElement.scrollWidth - {width},
            [...document.querySelectorAll('body *')]
                .filter((each) => each.getBoundingClientRect().right > {width} + 1)
                .map((each) => `${{each.tagName}}#${{each.id}}: ${{each.textContent}}`),
        ]"
    ))
}

/// Returns the page once it has this text at this key.
#[track_caller]
fn await_text(browser: &mut Browser, key: &str, text: &str) -> Value {
    eventually(&format!("{key} is {text}"), || {
        let page = browser.evaluate(TEXTS);
        page[key].as_str().is_some_and(|shown| shown.contains(text)).then_some(page)
    })
}

/// Returns a number as the page shows it.
fn shown(number: f64) -> String {
    format!("{number:.0}")
}

/// Starts a proxy that counts keys and keeps four of them.
fn start(redis: &RedisServer) -> Proxy {
    let more = [
        "admin.hotkeys = 10",
        "cache.capacity = 4",
        "cache.policy = \"lru\"",
        "cache.max_memory = \"64MiB\"",
    ]
    .join("\n");
    let proxy = Proxy::start(&config(&redis.url(), &more));
    await_ready(&proxy);
    proxy
}

/// Sends reads of every kind that needs no fault.
fn send_traffic(redis: &RedisServer, proxy: &Proxy) {
    (0..8).for_each(|number| set(redis, &format!("key:{number}"), "value"));
    (0..8).for_each(|number| assert_eq!(read(proxy, &format!("key:{number}")).status, 200));
    (0..5).for_each(|_| assert_eq!(read(proxy, "key:7").status, 200));
    (0..3).for_each(|_| assert_eq!(read(proxy, "absent").status, 404));
}

fn page_url(proxy: &Proxy) -> String {
    format!("http://{}/status", proxy.admin())
}

/// Fails if the page used anything but the proxy, or broke its own rules.
fn assert_self_contained(browser: &Browser, proxy: &Proxy) {
    let requests = browser.events("Network.requestWillBeSent");
    let urls: Vec<_> =
        requests.iter().filter_map(|event| event["request"]["url"].as_str()).collect();
    let origin = format!("http://{}/", proxy.admin());
    assert!(urls.iter().any(|url| url.ends_with("/status.json")), "{urls:?}");
    let mut others = urls.iter().filter(|url| !url.starts_with(&origin) && **url != "data:,");
    assert_eq!(others.next(), None);
    let problems = browser.events("Log.entryAdded");
    assert!(problems.is_empty(), "{problems:?}");
    let exceptions = browser.events("Runtime.exceptionThrown");
    assert!(exceptions.is_empty(), "{exceptions:?}");
}

#[test]
fn page_shows_the_counts_of_the_metrics() {
    let Some(mut browser) = Browser::start() else { return };
    let mut redis = RedisServer::start();
    let proxy = start(&redis);
    proxy.expect_log("connection to Redis");
    send_traffic(&redis, &proxy);
    browser.open(&page_url(&proxy));
    let page = await_text(&mut browser, "total", "16");
    for (key, expected) in
        [("level", "fresh"), ("saved", "7"), ("ratio", "43.8 %"), ("memory-bound", "64.0 MiB")]
    {
        assert_eq!(page[key], expected, "{key}");
    }
    assert!(page["state"].as_str().is_some_and(|state| state.starts_with("Fresh: Redis")));
    for (outcome, expected) in [("hit", 5.0), ("negative_hit", 2.0), ("miss", 9.0), ("stale", 0.0)]
    {
        assert_eq!(shown(reads(&proxy, outcome)), shown(expected), "{outcome}");
        assert_eq!(page["outcomes"][outcome][0], shown(expected), "{outcome}");
        assert_eq!(page["outcomes"][outcome][3] == "-", expected == 0.0, "{outcome}");
    }
    let values = &page["memory"]["values"];
    assert_eq!(values[0], shown(metric(&proxy, "cache_entries")));
    assert_eq!(values[1], "4");
    assert_eq!(values[2], format!("{} B", metric(&proxy, "cache_bytes")));
    let evicted = metric(&proxy, "cache_evictions_total{cause=\"capacity\"}");
    assert_eq!((shown(evicted), &page["evictions"]["capacity"][0]), ("5".to_owned(), &json!("5")));
    assert_eq!(page["keys"]["key:7"][0], "6");
    assert_eq!(page["connections"]["admin"][1], "64");
    let nodes = page["nodes"].as_object().expect("a table");
    assert!(nodes.len() == 1 && nodes.values().all(|node| node[1] == "up"), "{nodes:?}");
    let about = page["about"].as_str().expect("a text");
    assert!(about.contains(env!("CARGO_PKG_VERSION")) && !about.contains("refused"), "{about}");
    // It follows the proxy: another read, the loss of Redis, the end of the proxy.
    assert_eq!(read(&proxy, "key:7").status, 200);
    await_text(&mut browser, "total", "17");
    assert_self_contained(&browser, &proxy);
    redis.stop();
    let page = await_text(&mut browser, "state", "Not ready: ");
    assert_eq!(page["level"], "down");
    proxy.finish();
    let page = await_text(&mut browser, "state", "The proxy does not answer");
    assert_eq!((&page["level"], &page["total"]), (&json!("down"), &json!("17")));
}

#[test]
fn page_fits_every_screen() {
    let Some(mut browser) = Browser::start() else { return };
    let redis = RedisServer::start();
    let proxy = start(&redis);
    send_traffic(&redis, &proxy);
    let long = format!("key:{}", "long-".repeat(40));
    set(&redis, &long, "value");
    (0..20).for_each(|_| assert_eq!(read(&proxy, &long).status, 200));
    for (name, size, scheme) in [
        ("wide", (1280, 900), Scheme::Light),
        ("wide-dark", (1280, 900), Scheme::Dark),
        ("phone-390", (390, 844), Scheme::Light),
        ("phone-390-dark", (390, 844), Scheme::Dark),
        ("phone-320", (320, 640), Scheme::Light),
    ] {
        browser.resize(size, scheme);
        browser.open(&page_url(&proxy));
        await_text(&mut browser, "total", "36");
        assert_eq!(overflow(&mut browser, size.0), json!([0, []]), "{name}");
        let back = browser.evaluate("getComputedStyle(document.body).backgroundColor");
        assert_eq!(back == "rgb(255, 255, 255)", scheme == Scheme::Light, "{name}: {back}");
        save(&mut browser, name);
    }
    assert_self_contained(&browser, &proxy);
}

#[test]
fn axe_finds_nothing_to_criticise_on_the_page() {
    let Some(axe) = clients::axe() else { return };
    let Some(mut browser) = Browser::start() else { return };
    let redis = RedisServer::start();
    let proxy = start(&redis);
    send_traffic(&redis, &proxy);
    for scheme in [Scheme::Light, Scheme::Dark] {
        browser.resize((390, 844), scheme);
        browser.open(&page_url(&proxy));
        await_text(&mut browser, "total", "16");
        browser.evaluate(&axe);
        let found = browser.evaluate(
            "axe.run().then(({ violations, passes }) => [passes.length, violations.map((each) =>
                [each.id, each.impact, each.nodes.map((node) => node.html).slice(0, 3)])])",
        );
        assert_eq!(found[1], json!([]), "{scheme:?}");
        assert!(found[0].as_u64() > Some(10), "axe judged next to nothing: {found}");
    }
}

/// Writes a picture to a file, to be looked at, if `REDIS_PROXY_SCREENS` names a directory.
fn save(browser: &mut Browser, name: &str) {
    if let Some(directory) = std::env::var_os("REDIS_PROXY_SCREENS") {
        browser.save_picture(&Path::new(&directory).join(format!("{name}.png")));
    }
}
