# Checks that the module's units match those in systemd/, and that the module knows which keys
# SIGHUP applies.
{ pkgs, module }:

let
  inherit (pkgs) lib;

  evaluate =
    settings:
    (pkgs.nixos {
      imports = [ module ];
      services.redis-proxy = {
        enable = true;
        socketActivation = true;
        inherit settings;
      };
      boot.isContainer = true;
      system.stateVersion = lib.trivial.release;
    }).config.systemd;
  systemd = evaluate { };

  lines = file: lib.splitString "\n" (lib.readFile file);
  isText = line: line != "" && !(lib.hasPrefix "#" line);

  # The lines of one section of a unit, as values by name. A name may have several.
  section =
    name: file:
    let
      after = lib.last (lib.splitString "[${name}]\n" (lib.readFile file));
      body = lib.head (lib.splitString "\n[" after);
      pairs = map (builtins.match "([A-Za-z]+)=(.*)") (lib.filter isText (lib.splitString "\n" body));
    in
    lib.zipAttrs (map (pair: { ${lib.head pair} = lib.last pair; }) pairs);

  # The module's settings, as systemd would read them.
  rendered =
    section:
    let
      words =
        value:
        if value == true then
          "yes"
        else if value == false then
          "no"
        else
          toString value;
      values = value: map words (lib.toList value);
    in
    lib.filterAttrs (_: values: values != [ ]) (lib.mapAttrs (_: values) section);

  # One line with several words equals several lines.
  words = lib.mapAttrs (_: values: lib.concatStringsSep " " values);

  # The settings that differ because a distribution and a NixOS system keep files in different
  # places, and because a distribution may have a systemd without notify-reload.
  serviceOwn = [
    "EnvironmentFile"
    "ExecReload"
    "ExecStart"
    "LoadCredential"
    "Sockets"
    "SupplementaryGroups"
    "Type"
  ];
  socketOwn = [
    "ListenStream"
    "Service"
  ];

  differing =
    own: ours: theirs:
    let
      a = removeAttrs (words (rendered ours)) own;
      b = removeAttrs (words theirs) own;
    in
    lib.filter (name: a.${name} or null != b.${name} or null) (lib.attrNames (a // b));

  # The keys marked "(live)" in redis-proxy.toml, as section.key.
  marked =
    (lib.foldl'
      (
        state: line:
        let
          header = builtins.match "\\[([a-z]+)]" line;
          key = builtins.match "([a-z_]+) = .*" line;
        in
        if header != null then
          state // { section = lib.head header; }
        else if lib.hasPrefix "#" line then
          state // { live = state.live || lib.hasInfix "(live)" line; }
        else if key != null then
          state
          // {
            live = false;
            found = state.found ++ lib.optional state.live "${state.section}.${lib.head key}";
          }
        else
          state // { live = false; }
      )
      {
        section = "";
        live = false;
        found = [ ];
      }
      (lines ../redis-proxy.toml)
    ).found;

  # The keys that restart nothing when they change: all keys that the restart trigger lacks.
  defaults = lib.importTOML ../redis-proxy.toml;
  trigger = lib.head (evaluate defaults).services.redis-proxy.restartTriggers;
  keys =
    tree:
    lib.concatLists (
      lib.mapAttrsToList (section: lib.mapAttrsToList (key: _: "${section}.${key}")) tree
    );
  reloading = lib.subtractLists (keys (builtins.fromJSON trigger)) (keys defaults);

  none = what: names: lib.assertMsg (names == [ ]) "${what}: ${toString names}";
  both = a: b: lib.subtractLists a b ++ lib.subtractLists b a;
in
assert none "the service of the module and systemd/redis-proxy.service differ in" (
  differing serviceOwn systemd.services.redis-proxy.serviceConfig (
    section "Service" ../systemd/redis-proxy.service
  )
);
assert none "the socket of the module and systemd/redis-proxy.socket differ in" (
  differing socketOwn systemd.sockets.redis-proxy.socketConfig (
    section "Socket" ../systemd/redis-proxy.socket
  )
);
assert none "the module and redis-proxy.toml do not agree on what a reload puts in force" (
  both reloading marked
);
pkgs.emptyFile
