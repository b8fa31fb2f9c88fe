#!/bin/sh
# Makes the layers of the build bench's image in the empty directory $1: a Debian base, then what two rounds of package
# installation change in it, each as a tar archive of the files whose inode changed since the round before.
set -eu
export OUT="$1"
export TAR_OPTIONS="--numeric-owner --xattrs --exclude=./dev --exclude=./proc --exclude=./sys --exclude=./var/cache/apt/* --exclude=./var/lib/apt/lists/*"
install_round() {
  echo "chroot \"\$1\" apt-get -qq install -y --no-install-recommends $1 >\"\$OUT/log\" 2>&1"
}
changed='cd "$1" && find . -xdev -cnewer "$OUT/stamp" -print0 | tar --no-recursion --null -cf'
mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
  --customize-hook='tar -C "$1" -cf "$OUT/0.tar" . && touch "$OUT/stamp" && sleep 1' \
  --customize-hook="$(install_round 'git vim golang-1.19-src')" \
  --customize-hook="$changed"' "$OUT/1.tar" -T - && touch "$OUT/stamp" && sleep 1' \
  --customize-hook="$(install_round 'npm python3-pip')" \
  --customize-hook="$changed"' "$OUT/2.tar" -T -' \
  bookworm "$OUT/root"
rm -rf "$OUT/root" "$OUT/stamp" "$OUT/log"
