#!/usr/bin/env python3
"""Reads a lifeboat repository (format version 1) without lifeboat: a second reader, written from docs/format.md alone.

    LIFEBOAT_PASSPHRASE=… extract.py REPOSITORY_FOLDER list
    LIFEBOAT_PASSPHRASE=… extract.py REPOSITORY_FOLDER restore SNAPSHOT TARGET_FOLDER
    LIFEBOAT_PASSPHRASE=… extract.py REPOSITORY_FOLDER logs
    LIFEBOAT_PASSPHRASE=… extract.py REPOSITORY_FOLDER log PLAN/SOURCE TARGET_FOLDER
    LIFEBOAT_PASSPHRASE=… extract.py REPOSITORY_FOLDER wal PLAN/SOURCE TARGET_FOLDER

REPOSITORY_FOLDER is a repository on a local folder, or a copy of a bucket's objects below their prefix. The passphrase is that of a
reader slot, or the recovery key, or the text of a key file or of a recipient's private key, or as many shares as are needed. SNAPSHOT is an id or a unique beginning of it. TARGET_FOLDER must not exist; it gets one
folder for each source of the snapshot. `log` writes the pieces of a source's continuous log there, each under STREAM-START-END, and its side
files into `history`; `wal` writes the log of a PostgreSQL server as its own files: segments, those that are not whole with `.partial` behind
their names, and histories of timelines. Everything that is read is checked: seals, hashes, ids, order, counts. Any doubt ends the program with exit 1
and leaves what was written so far: a target is complete only when the program ends with exit 0.

Needs Python 3.9 and, from PyPI: cryptography, argon2-cffi, blake3, zstandard.
"""

import hashlib
import hmac
import json
import os
import re
import stat
import struct
import sys
from collections import OrderedDict

import argon2.low_level
import zstandard
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

CHUNK_MAX, FRAME_MAX, PACK_MAX, OBJECT_MAX, LOG_PIECE_MAX = 4 << 20, 16 << 20, 512 << 20, 256 << 20, 128 << 20
DATA, NODES, LOG = 1, 2, 3
MANIFEST, VOID, LOG_SIDE, LOG_GAP, LEDGER, MOVED, REMOVED_IDS, PLAN_KEY = 2, 6, 7, 8, 9, 10, 12, 32
OWN_FIRST = 0x8000
RAW, ZSTD, DELTA, PAGES = 0, 1, 2, 3
ZERO_NONCE = bytes(12)
_HEX16, _ULID = "[0-9a-f]{16}", "[0-9a-hjkmnp-tv-z]{26}"
# Names of objects; what has another name is somebody else's.
OBJECT = re.compile(
    rf"format|keys/({_HEX16}(\.[0-9]+-{_HEX16})?|generation-[0-9]+|plan-[0-9a-f]{{4}}(-erased)?)"
    rf"|packs/(?P<pp>[0-9a-f]{{2}})/(?P=pp)[0-9a-f]{{62}}|index/[0-9a-f]{{64}}"
    rf"|snapshots/[0-9a-f]{{32}}/{_ULID}|(reports|sessions|key-events|gc/(tombstones|waits|moved))/{_ULID}"
    rf"|retention/({_HEX16}|(ids|removed)/{_HEX16}-{_HEX16})"
    rf"|logs/[0-9a-f]{{32}}/((pieces|gaps)/{_HEX16}-{_HEX16}-{_HEX16}|history/[0-9A-Za-z][0-9A-Za-z_.-]*\.history)"
)


class Bad(Exception):
    """The repository is not what docs/format.md says."""


def need(condition, message):
    if not condition:
        raise Bad(message)


# --- primitives ---------------------------------------------------------------------------------------------------------------


def kdf(context, material):
    return blake3(material, derive_key_context=context).digest()


def mac16(key, data):
    return blake3(data, key=key).digest()[:16]


def ulid_text(data):
    """A ULID of 16 bytes as it is written."""
    number = int.from_bytes(data, "big")
    return "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5)).lower()


def unseal(key, nonce, sealed, associated, what):
    try:
        return AESGCM(key).decrypt(nonce, sealed, associated)
    except InvalidTag:
        raise Bad(f"{what}: the seal is broken") from None


def u16(data):
    return int.from_bytes(data, "little")


def hkdf_extract(salt, material):
    return hmac.new(salt or bytes(32), material, hashlib.sha256).digest()


def hkdf_expand(key, info, length):
    out, block, number = b"", b"", 1
    while len(out) < length:
        block = hmac.new(key, block + info + bytes([number]), hashlib.sha256).digest()
        out, number = out + block, number + 1
    return out[:length]


class Hpke:
    """RFC 9180, single shot, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM."""

    KEM = b"KEM" + (0x0020).to_bytes(2, "big")
    SUITE = b"HPKE" + b"".join(n.to_bytes(2, "big") for n in (0x0020, 0x0001, 0x0002))

    def __init__(self, material):
        prk = self._extract(self.KEM, b"", b"dkp_prk", material)
        self.private = X25519PrivateKey.from_private_bytes(self._expand(self.KEM, prk, b"sk", b"", 32))
        self.public = self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @staticmethod
    def _extract(suite, salt, label, material):
        return hkdf_extract(salt, b"HPKE-v1" + suite + label + material)

    @staticmethod
    def _expand(suite, key, label, info, length):
        return hkdf_expand(key, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, length)

    def open(self, encapsulated, sealed, info, associated, what):
        shared_point = self.private.exchange(X25519PublicKey.from_public_bytes(encapsulated))
        eae = self._extract(self.KEM, b"", b"eae_prk", shared_point)
        shared = self._expand(self.KEM, eae, b"shared_secret", encapsulated + self.public, 32)
        context = b"\x00" + self._extract(self.SUITE, b"", b"psk_id_hash", b"") + self._extract(self.SUITE, b"", b"info_hash", info)
        secret = self._extract(self.SUITE, shared, b"secret", b"")
        key = self._expand(self.SUITE, secret, b"key", context, 32)
        nonce = self._expand(self.SUITE, secret, b"base_nonce", context, 12)
        return unseal(key, nonce, sealed, associated, what)


def is_signed(public, text, signature):
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


# --- keys as text -------------------------------------------------------------------------------------------------------------

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def letters_of(data):
    bits = int.from_bytes(data, "big") << (-len(data) * 8 % 5)
    count = -(-len(data) * 8 // 5)
    return "".join(ALPHABET[bits >> 5 * (count - 1 - at) & 31] for at in range(count))


FORGIVEN = str.maketrans("OIL", "011")


def meant(text):
    """A key as it was meant: without white space and dashes, in capitals, O as 0, I and L as 1."""
    compact = "".join(c for c in text if not c.isspace() and c != "-")
    return "".join(c.upper() if c.isascii() else c for c in compact).translate(FORGIVEN)


def from_text(prefix, text, length):
    """The bytes of a key as text. `text` is as `meant` reads it."""
    letters = text[len(prefix) :]
    count = -(-length * 8 // 5)
    need(len(letters) == count + 4 and all(letter in ALPHABET for letter in letters), f"a text that begins with {prefix} is not whole")
    bits = 0
    for letter in letters[:count]:
        bits = bits << 5 | ALPHABET.index(letter)
    spare = count * 5 - length * 8
    data = (bits >> spare).to_bytes(length, "big")
    check = letters_of(kdf("lifeboat v1 text check", prefix.encode() + data)[:3])[:4]
    need(bits & ((1 << spare) - 1) == 0 and letters[count:] == check, f"a text that begins with {prefix} has a wrong letter")
    return data


def multiply(a, b):
    product = 0
    for bit in range(8):
        product ^= a if b >> bit & 1 else 0
        a = a << 1 ^ (0x11B if a & 0x80 else 0)
    return product


def combine(texts):
    """The key file that some shares are of."""
    shares = {}
    for text in texts:
        data = from_text("LBSH1", text, 38)
        shares[data[5]] = data
    need(len({share[:5] for share in shares.values()}) == 1, "these are shares of different keys")
    threshold = next(iter(shares.values()))[4]
    need(len(shares) >= threshold, f"{threshold} shares are needed")
    points = sorted(shares.items())[:threshold]
    secret = bytearray(32)
    for x, share in points:
        weight = 1
        for other, _ in points:
            if other != x:
                inverse = next(i for i in range(256) if multiply(i, other ^ x) == 1)
                weight = multiply(weight, multiply(other, inverse))
        for at in range(32):
            secret[at] ^= multiply(share[6 + at], weight)
    return bytes(secret)


class Wire:
    """Takes values off the front of bytes; never past their end."""

    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def left(self):
        return len(self.data) - self.at

    def take(self, count):
        need(0 <= count <= self.left(), f"{self.what}: ends too early")
        self.at += count
        return self.data[self.at - count : self.at]

    def u8(self):
        return self.take(1)[0]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.u8()
            need(shift < 63 or (shift == 63 and byte <= 1), f"{self.what}: a varint over 64 bits")
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                need(byte or not shift, f"{self.what}: a varint that is not in its shortest form")
                return value
            shift += 7

    def varint32(self):
        value = self.varint()
        need(value < 1 << 32, f"{self.what}: a number over 32 bits")
        return value

    def count(self, least):
        count = self.varint()
        need(count * least <= self.left(), f"{self.what}: a count that does not fit")
        return count

    def blob(self):
        return self.take(self.count(1))

    def finish(self):
        need(not self.left(), f"{self.what}: has bytes too many")


def restore_pages(frame):
    """Undoes what encoding 3 does to the pages of PostgreSQL in a frame."""
    frame = bytearray(frame)

    def add(at, number):
        number = (int.from_bytes(frame[at : at + 2], "little") + number) & 0xFFFF
        frame[at : at + 2] = number.to_bytes(2, "little")
        return number

    for start in range(0, len(frame) - 8191, 8192):
        lower, upper, special, size = struct.unpack_from("<4H", frame, start + 12)
        if size != 8196 or not 28 <= lower <= upper <= special <= 8192:
            continue
        before, seen, high, low, position = special, set(), 0, 0, 0
        heap = special == 8192
        for number in range((lower - 24) // 4):
            (pointer,) = struct.unpack_from("<I", frame, start + 24 + 4 * number)
            state, length = pointer >> 15 & 3, pointer >> 17
            if state != 1:
                continue
            before = (pointer + before - (length + 7 & ~7)) & 0x7FFF
            struct.pack_into("<I", frame, start + 24 + 4 * number, pointer & ~0x7FFF | before)
            if before % 8 or before < upper or before in seen or before + (23 if heap else 8) > special:
                continue
            seen.add(before)
            place = start + before + (12 if heap else 0)
            high, low = add(place, high), add(place + 2, low)
            position = add(place + 4, number + 1 if heap else position)
    return bytes(frame)


def decompress(data, most, what, dictionary=None):
    """Exactly one zstd frame that yields at most `most` bytes."""
    options = {"max_window_size": 1 << 24}
    if dictionary is not None:
        options = {"dict_data": zstandard.ZstdCompressionDict(dictionary, dict_type=zstandard.DICT_TYPE_RAWCONTENT)}
    try:
        size = zstandard.frame_content_size(data)
        need(size <= most, f"{what}: claims an impossible size")
        decompressor = zstandard.ZstdDecompressor(**options).decompressobj()
        plain = decompressor.decompress(data)
    except zstandard.ZstdError as error:
        raise Bad(f"{what}: cannot be decompressed: {error}") from None
    need(decompressor.eof and not decompressor.unused_data, f"{what}: not one whole zstd frame")
    need(len(plain) <= most and size in (-1, len(plain)), f"{what}: decompresses to another size")
    return plain


# --- objects and keys ---------------------------------------------------------------------------------------------------------


class Generation:
    """The keys of one generation, from its bundle."""

    def __init__(self, bundle):
        root = bytes.fromhex(bundle["root"])
        self.metadata, self.chunk_ids = bytes.fromhex(bundle["metadata"]), bytes.fromhex(bundle["chunk_ids"])
        self.node_ids = kdf("lifeboat v1 node ids", self.metadata)
        self.hpke = Hpke(kdf("lifeboat v1 data key pair", root))
        self.verifying = signing_key(root)
        fits = len(root) == 32 and kdf("lifeboat v1 metadata", root) == self.metadata and self.hpke.public.hex() == bundle["public"]
        need(fits, "the key bundle does not fit together")


def signing_key(root):
    """The public half of what a generation signs with."""
    private = Ed25519PrivateKey.from_private_bytes(kdf("lifeboat v1 report signing", root))
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


class Repository:
    def __init__(self, folder, passphrase):
        self.folder = folder
        try:
            with open(os.path.join(folder, "format"), "rb") as file:
                form = json.load(file)
        except FileNotFoundError:
            raise Bad(f"there is no repository in {folder}") from None
        need(form.get("format") == "lifeboat repository", "this is not a lifeboat repository")
        need(form.get("version") == 1, f"format version {form.get('version')}; this program reads version 1")
        need(re.fullmatch("[0-9a-f]{32}", form["id"]), "the format object has an impossible id")
        self.id = bytes.fromhex(form["id"])
        self.generations = {bundle["generation"]: Generation(bundle) for bundle in self._unlock(passphrase)}
        oldest = self.generations[min(self.generations)]
        self.chain_names = kdf("lifeboat v1 chain names", oldest.metadata)
        self.log_content = kdf("lifeboat v1 log content", oldest.chunk_ids)
        self.own = {}
        self.moved = None
        self.directories = OrderedDict()
        self.frames = OrderedDict()
        self.frame_keys = {}
        self._plan_keys()

    def path(self, name):
        return os.path.join(self.folder, *name.split("/"))

    def read(self, name, offset=0, length=None, total=None):
        try:
            with open(self.path(name), "rb") as file:
                if total is not None:
                    size = os.fstat(file.fileno()).st_size
                    need(size == total, f"{name}: has {size} bytes and should have {total}")
                file.seek(offset)
                data = file.read() if length is None else file.read(length)
        except FileNotFoundError:
            raise Bad(f"{name}: is missing") from None
        need(length is None or len(data) == length, f"{name}: is truncated")
        return data

    def names(self, prefix):
        found = []
        for folder, _, files in os.walk(self.path(prefix)):
            inside = os.path.relpath(folder, self.folder).replace(os.sep, "/")
            found += [f"{inside}/{name}" for name in files if "#" not in name]
        return sorted(name for name in found if OBJECT.fullmatch(name))

    def _unlock(self, passphrase):
        """The key generations of the reader slot that opens, in any order."""
        text = passphrase.rstrip("\r\n")
        compact = meant(text)
        kind, secret = "passphrase", text.encode()
        if compact.startswith(meant("LBKF1")):
            kind, secret = "key-file", from_text("LBKF1", compact, 32)
        elif compact.startswith(meant("LBSK1")):
            kind, secret = "recipient", Hpke(kdf("lifeboat v1 recipient key pair", from_text("LBSK1", compact, 32)))
        elif meant("LBSH1") + "-" in text.upper().translate(FORGIVEN) or compact.startswith(meant("LBSH1")):
            parts = compact.split(meant("LBSH1"))[1:]
            kind, secret = "key-file", combine(["LBSH1" + part[:65] for part in parts])
        elif compact.startswith(meant("LBRK1")) and len(compact[5:].encode()) == 32:
            secret = ("LBRK1" + compact[5:]).encode()
        problems, weaker, found = [], None, []
        for name in self.names("keys"):
            if not re.fullmatch("keys/[0-9a-f]{16}", name):
                continue
            try:
                slot = self._open_slot(name, kind, secret)
            except (Bad, ValueError, KeyError) as error:
                problems.append(f"{name}: {error}")
                continue
            if slot and slot[1] == "reader":
                found.append(slot[0])
            weaker = weaker or (slot and slot[1])
        if found:
            return max(found, key=lambda generations: max(bundle["generation"] for bundle in generations))
        need(weaker is None, f"this passphrase opens a {weaker} key slot: reading data needs a reader's")
        raise Bad("; ".join(["no key slot opens with this passphrase", *problems]))

    def _open_slot(self, name, kind, key):
        """Bundled generations and role; `None` when it opens with something else. `key`: passphrase, content of a key file, or a key pair."""
        slot = json.loads(self.read(name))
        first = slot.get("version") == 1
        fields = {"version", "id", "label", "role", "created", "commitment", "sealed", "check"}
        fields |= {"kdf"} if first else {"generation", "lock", "public"}
        need(set(slot) == fields and name == f"keys/{slot['id']}", "is not the key slot that its name says")
        match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", slot["created"])
        need(match, "has an impossible time")
        told = [slot["version"], slot["id"], slot["label"], slot["role"], f"{match[1]}.{(match[2] or '').ljust(9, '0')}Z"]
        lock = slot["kdf"] if first else slot["lock"]
        if first:
            need(lock["algorithm"] == "argon2id", "unknown key derivation")
            lock = {"kind": "passphrase", **lock}
            told += [lock[field] for field in ("algorithm", "salt", "memory_kib", "passes", "lanes")]
        else:
            need(slot["version"] == 2, "unknown version")
            order = {"passphrase": ("salt", "memory_kib", "passes", "lanes"), "key-file": ("salt",), "recipient": ("encapsulated", "secret")}
            told += [slot["generation"], lock["kind"], *(lock[field] for field in order[lock["kind"]]), slot["public"]]
        told += [slot["commitment"], slot["sealed"]]
        need(blake3("".join(f"{field}\n" for field in told).encode()).hexdigest() == slot["check"], "was changed")
        if lock["kind"] != kind or (kind == "recipient" and key.public.hex() != slot["public"]):
            return None
        if kind == "passphrase":
            need(lock["memory_kib"] <= 1 << 20 and lock["passes"] <= 64, "asks for too much memory or time")
            secret = argon2.low_level.hash_secret_raw(
                key, bytes.fromhex(lock["salt"]), lock["passes"], lock["memory_kib"], lock["lanes"], 32, argon2.low_level.Type.ID, 0x13
            )
        elif kind == "key-file":
            secret = kdf("lifeboat v1 key file", key + bytes.fromhex(lock["salt"]))
        else:
            bound = f"lifeboat v1 slot secret\n{self.id.hex()}\n{slot['role']}\n".encode()
            sealed = bytes.fromhex(lock["secret"])
            secret = key.open(bytes.fromhex(lock["encapsulated"]), sealed, b"lifeboat v1 key slot", bound, name)
        if not hmac.compare_digest(kdf("lifeboat v1 slot commitment", secret), bytes.fromhex(slot["commitment"])):
            return None
        if first:
            bound = f"lifeboat v1 key slot\n{self.id.hex()}\n{slot['id']}\n{slot['role']}\n"
        else:
            bound = f"lifeboat v1 key slot 2\n{self.id.hex()}\n{slot['id']}\n{slot['role']}\n{slot['generation']}\n{kind}\n{slot['public']}\n"
        bundle = json.loads(unseal(kdf("lifeboat v1 slot wrap", secret), ZERO_NONCE, bytes.fromhex(slot["sealed"]), bound.encode(), name))
        if first:
            return [bundle], slot["role"]
        pair = key if kind == "recipient" else Hpke(kdf("lifeboat v1 slot key pair", secret))
        need(pair.public.hex() == slot["public"], "its key pair is another one")
        return self._bring_up(slot, pair, bundle["generations"]), slot["role"]

    def _bring_up(self, slot, pair, generations):
        """The newest generations that rotations gave to the slot."""
        last = max(bundle["generation"] for bundle in generations)
        if slot["role"] != "reader":
            return generations
        known = next(bundle for bundle in generations if bundle["generation"] == last)
        verifying = signing_key(bytes.fromhex(known["root"]))
        numbers = [int(match[1]) for name in self.names("keys") if (match := re.fullmatch(r"keys/generation-(\d+)", name))]
        for number in sorted(number for number in numbers if number > last):
            marker = json.loads(self.read(f"keys/generation-{number}"))
            match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z", marker["created"])
            created = f"{match[1]}.{(match[2] or '').ljust(9, '0')}Z"
            told = ("lifeboat v1 key generation", self.id.hex(), number, last, created, marker["public"], marker["verifying"])
            text = "".join(f"{field}\n" for field in told).encode()
            what = f"keys/generation-{number}"
            need(marker["generation"] == number and marker["previous"] == last, f"{what}: does not follow the one before it")
            need(is_signed(verifying, text, bytes.fromhex(marker["signature"])), f"{what}: is not signed by the one before it")
            last, verifying = number, bytes.fromhex(marker["verifying"])
            name = f"keys/{slot['id']}.{number}-{blake3(marker['public'].encode()).hexdigest()[:16]}"
            if name not in self.names("keys"):
                continue
            update = json.loads(self.read(name))
            bound = f"lifeboat v1 key update\n{self.id.hex()}\n{slot['id']}\n{slot['role']}\n{number}\n".encode()
            encapsulated, sealed = bytes.fromhex(update["encapsulated"]), bytes.fromhex(update["sealed"])
            need(is_signed(verifying, bound + encapsulated + sealed, bytes.fromhex(update["signature"])), f"{name}: is not signed")
            generations = json.loads(pair.open(encapsulated, sealed, b"lifeboat v1 key update", bound, name))["generations"]
        return generations

    def _plan_keys(self):
        """Own keys of plans by number; `None` for a destroyed one, a text for one that is damaged."""
        for name in self.names("keys"):
            match = re.fullmatch("keys/plan-([0-9a-f]{4})(-erased)?", name)
            if not match:
                continue
            number = int(match[1], 16)
            try:
                if u16(self.read(name)[6:8]) > max(self.generations):
                    continue
                kind, content = self.open_object(name)
                signed = json.loads(content)
                record = json.loads(signed["record"])
                readers = self.generations[record["generation"]]
                need(kind == PLAN_KEY and record["number"] == number, f"{name}: is something else than its name says")
                need(is_signed(readers.verifying, signed["record"].encode(), bytes.fromhex(signed["signature"])), f"{name}: is not signed")
                if match[2]:
                    self.own[number] = None
                elif self.own.get(number, "") is not None:
                    bound = f"lifeboat v1 plan key\n{self.id.hex()}\n{number}\n{record['plan']}\n".encode()
                    encapsulated, sealed = bytes.fromhex(record["encapsulated"]), bytes.fromhex(record["sealed"])
                    root = readers.hpke.open(encapsulated, sealed, b"lifeboat v1 plan key", bound, name)
                    pair, material = Hpke(kdf("lifeboat v1 data key pair", root)), number.to_bytes(2, "little") + bytes.fromhex(record["public"])
                    need(pair.public.hex() == record["public"], f"{name}: its key pair is another one")
                    self.own[number] = (pair, kdf("lifeboat v1 plan chunk ids", readers.chunk_ids + material))
            except (Bad, ValueError, KeyError) as error:
                self.own.setdefault(number, str(error))

    def own_key(self, number, name):
        own = self.own.get(number, "its key is not there")
        need(own is not None, f"{name}: the key of this plan's data was destroyed")
        need(not isinstance(own, str), f"{name}: is sealed to a plan's own key, keys/plan-{number:04x}: {own}")
        return own

    def is_chunk(self, envelope, data, chunk_id):
        """Whether data has an id, under the keys that the envelope of its frame may mean."""
        if envelope >= OWN_FIRST:
            return mac16(self.own_key(envelope, "a chunk")[1], data) == chunk_id
        return any(mac16(key, data) == chunk_id for key in {known.chunk_ids for known in self.generations.values()})

    def metadata_key(self, purpose, salt, generation, name):
        known = self.generations.get(generation)
        need(known, f"{name}: sealed under key generation {generation}, which this key slot does not hold")
        return kdf(purpose, known.metadata + salt)

    def open_object(self, name):
        """Kind and content of a sealed object (not an index object: those are bound to another name)."""
        data = self.read(name)
        need(len(data) >= 72 and data[:4] == b"LBSO" and data[4] == 1, f"{name}: is no sealed object of this version")
        need(data[8:24] == self.id, f"{name}: belongs to another repository")
        key = self.metadata_key("lifeboat v1 sealed object", data[24:56], u16(data[6:8]), name)
        body = unseal(key, ZERO_NONCE, data[56:], data[:56] + name.encode(), name)
        need(zstandard.frame_content_size(body) >= 0, f"{name}: does not state its size")
        return data[5], decompress(body, OBJECT_MAX, name)

    def manifests(self):
        """All snapshots, oldest first, and what is wrong with those that cannot be opened: they do not stand in the way of the others."""
        found, problems = [], []
        try:
            removed = self.removed()
        except (Bad, ValueError, KeyError) as error:
            removed = set()
            problems.append(f"the retention ledger: {error}")
        for name in self.names("snapshots"):
            if name.rsplit("/", 1)[1] in removed:
                continue
            try:
                kind, content = self.open_object(name)
                need(kind in (MANIFEST, VOID), f"{name}: is of another kind than its name says")
                if kind == MANIFEST:
                    manifest = json.loads(content)
                    chain = mac16(self.chain_names, manifest["plan"].encode()).hex()
                    need(name == f"snapshots/{chain}/{manifest['id']}", f"{name}: holds another snapshot than its name says")
                    found.append(manifest)
            except (Bad, ValueError, KeyError) as error:
                problems.append(str(error))
        return sorted(found, key=lambda manifest: manifest["id"]), problems

    def removed(self):
        """Ids of the snapshots that the retention ledger has removed."""
        entries = []
        for name in self.names("retention"):
            if name.startswith(("retention/ids/", "retention/removed/")):
                continue
            kind, content = self.open_object(name)
            entry = json.loads(content)
            need(kind == LEDGER and name == f"retention/{entry['number']:016x}", f"{name}: holds another entry than its name says")
            entries.append((entry, blake3(self.read(name)).hexdigest()))
        based = [at for at, (entry, _) in enumerate(entries) if self.state(entry) or entry.get("base")]
        entries = entries[based[-1] :] if based else entries
        if not entries:
            return set()
        first = entries[0][0]
        need(based or first["number"] == 1, "its first entries are missing")
        for (before, digest), (after, _) in zip(entries, entries[1:]):
            need(after["number"] == before["number"] + 1 and after["previous"] == digest, f"entry {after['number']} follows no other")
        if self.state(first):
            removed = {id for volume in self.state(first)["volumes"] for id in self.removed_ids(volume)}
        else:
            removed = {snapshot["id"] for snapshot in (first.get("base") or {"removed": []})["removed"]}
        for entry, _ in entries:
            decision = entry["decision"]
            if decision["action"] == "remove":
                removed |= {snapshot["id"] for snapshot in decision["snapshots"]}
            elif decision["action"] == "reinstate":
                removed -= set(decision["snapshots"])
        return removed

    @staticmethod
    def state(entry):
        """All that the entries of the retention ledger before this one say, if it has that."""
        return entry.get("state") or entry.get("state_with_losses")

    def removed_ids(self, volume):
        """Ids of a volume of the retention ledger, as a state lists it."""
        name = f"retention/ids/{volume['name']}"
        kind, content = self.open_object(name)
        need(kind == REMOVED_IDS, f"{name}: is of another kind than its name says")
        need(blake3(self.read(name)).hexdigest() == volume["ids"], f"{name}: is another one than the ledger lists")
        ids = [content[at : at + 16] for at in range(0, len(content), 16)]
        need(len(content) == 16 * volume["snapshots"], f"{name}: has another length than the ledger says")
        need(all(before < after for before, after in zip(ids, ids[1:])), f"{name}: its ids are not in order")
        return [ulid_text(id) for id in ids]

    # --- packs ----------------------------------------------------------------------------------------------------------------

    def moved_packs(self):
        """Of each rewritten pack, by name: what became of its frames. The record with the smallest name counts."""
        if self.moved is None:
            self.moved = {}
            for name in self.names("gc/moved"):
                kind, content = self.open_object(name)
                need(kind in (MOVED, VOID), f"{name}: is of another kind than its name says")
                if kind == MOVED:
                    for source, frames in decode_moved(Wire(content, name)):
                        self.moved.setdefault(source, frames)
        return self.moved

    def where(self, place):
        """The place where something is now: its pack may have been put together anew."""
        for _ in range(len(self.moved_packs()) + 1):
            (pack, number, slot), moved = place, self.moved_packs()
            if pack[0] not in moved:
                return place
            frames = moved[pack[0]]
            need(number < len(frames) and frames[number], f"{pack_name(pack[0])}: what a reference names was not kept")
            target, frame, first, kept = frames[number]
            need(kept is None or (slot < len(kept) and kept[slot]), f"{pack_name(pack[0])}: what a reference names was not kept")
            place = (target, frame, slot if kept is None else first + sum(kept[:slot]))
        raise Bad(f"{pack_name(place[0][0])}: has moved in a circle")

    def directory(self, pack):
        """Kind, envelopes and frames of a pack. `pack`: name, length, sealed bytes of the directory."""
        if pack in self.directories:
            self.directories.move_to_end(pack)
            return self.directories[pack]
        digest, length, sealed_len = pack
        name = pack_name(digest)
        need(length <= PACK_MAX and 16 <= sealed_len <= length - 72, f"{name}: a reference to it has an impossible size")
        tail = self.read(name, length - 64 - sealed_len, sealed_len + 64, total=length)
        kind, wire = self.open_tail(name, tail, (DATA, NODES), b"")
        envelopes, frames = self.decode_directory(name, wire, length - 64 - sealed_len)
        self.directories[pack] = (kind, envelopes, frames)
        while len(self.directories) > 64:
            self.directories.popitem(last=False)
        return self.directories[pack]

    def open_tail(self, name, tail, kinds, place):
        """Kind and content of a sealed directory, which stands before the trailer at the end of `tail`."""
        sealed, trailer = tail[:-64], tail[-64:]
        need(trailer[60:] == b"LBPT" and trailer[56] == 1, f"{name}: has no trailer of this version")
        need(trailer[36:52] == self.id, f"{name}: belongs to another repository")
        need(int.from_bytes(trailer[32:36], "little") == len(sealed), f"{name}: its directory has another size")
        kind = trailer[57]
        need(kind in kinds, f"{name}: is of an unknown kind")
        header = b"LBPK" + bytes([trailer[56], kind]) + trailer[58:60]
        key = self.metadata_key("lifeboat v1 pack directory", trailer[:32], u16(trailer[58:60]), name)
        return kind, Wire(unseal(key, ZERO_NONCE, sealed, header + trailer + place, name), f"{name}: directory")

    @staticmethod
    def decode_directory(name, wire, end):
        """Envelopes and frames; the frames end at `end`."""
        envelopes = [(u16(wire.take(2)), wire.take(32), wire.take(32), wire.take(48)) for _ in range(wire.count(114))]
        frames, offset = [], 8
        for _ in range(wire.count(7)):
            encoding, envelope, ordinal = wire.u8(), wire.varint32(), wire.varint()
            sealed_bytes, plain_bytes = wire.varint32(), wire.varint32()
            count, mode = wire.count(16), wire.u8()
            need(encoding in (RAW, ZSTD, DELTA, PAGES) and envelope < len(envelopes) and mode in (0, 1), f"{name}: impossible frame")
            need(plain_bytes <= FRAME_MAX and sealed_bytes >= 16, f"{name}: frame of an impossible size")
            lengths = [wire.varint32()] * count if mode == 0 else [wire.varint32() for _ in range(count)]
            need(all(length <= CHUNK_MAX for length in lengths), f"{name}: chunk over the limit")
            ids = [wire.take(16) for _ in range(count)]
            bases = [(wire.take(16), wire.varint32()) for _ in range(count)] if encoding == DELTA else [None] * count
            stored = [base[1] if base else length for base, length in zip(bases, lengths)]
            need(sum(stored) == plain_bytes, f"{name}: chunks do not add up to their frame")
            frames.append((encoding, envelope, ordinal, offset, sealed_bytes, plain_bytes, list(zip(ids, lengths, bases, stored))))
            offset += sealed_bytes
        wire.finish()
        need(offset == end, f"{name}: frames do not add up to the pack")
        return envelopes, frames

    def frame(self, pack, number):
        """The plain bytes of one frame."""
        at = (pack[0], number)
        if at in self.frames:
            self.frames.move_to_end(at)
            return self.frames[at]
        kind, envelopes, frames = self.directory(pack)
        name = pack_name(pack[0])
        need(number < len(frames), f"{name}: has fewer frames than a reference to it says")
        self.frames[at] = self.open_frame(name, kind, envelopes, frames[number], self.read(name, frames[number][3], frames[number][4]))
        while len(self.frames) > 16:
            self.frames.popitem(last=False)
        return self.frames[at]

    def open_frame(self, name, kind, envelopes, frame, sealed):
        encoding, envelope, ordinal, offset, _, plain_bytes, _ = frame
        generation, salt, encapsulated, sealed_key = envelopes[envelope]
        if (kind, salt) not in self.frame_keys:
            if kind == NODES:
                key = self.metadata_key("lifeboat v1 node pack", salt, generation, name)
            else:
                context = self.id + generation.to_bytes(2, "little") + salt
                known = self.generations.get(generation)
                need(known or generation >= OWN_FIRST, f"{name}: sealed under key generation {generation}, which this key slot does not hold")
                pair = known.hpke if known else self.own_key(generation, name)[0]
                key = pair.open(encapsulated, sealed_key, b"lifeboat v1 pack key", context, f"{name}: its key")
            self.frame_keys[kind, salt] = key
        bound = b"lifeboat v1 frame" + self.id + bytes([kind]) + generation.to_bytes(2, "little") + salt + ordinal.to_bytes(8, "little")
        nonce = ordinal.to_bytes(8, "little") + bytes(4)
        plain = unseal(self.frame_keys[kind, salt], nonce, sealed, bound, f"{name}, frame at {offset}")
        if encoding != RAW:
            plain = decompress(plain, plain_bytes, f"{name}, frame at {offset}")
        need(len(plain) == plain_bytes, f"{name}, frame at {offset}: has another size")
        return restore_pages(plain) if encoding == PAGES else plain

    def slot(self, kind, place):
        """Directory entry and stored bytes at a place."""
        pack, number, slot = self.where(place)
        name = pack_name(pack[0])
        there, _, frames = self.directory(pack)
        need(there == kind, f"{name}: is a pack of the other kind")
        need(number < len(frames) and slot < len(frames[number][6]), f"{name}: holds less than a reference to it says")
        chunks = frames[number][6]
        start = sum(chunk[3] for chunk in chunks[:slot])
        return chunks[slot], self.frame(pack, number)[start : start + chunks[slot][3]]

    def envelope(self, place):
        """What the frame at a place is sealed under: a key generation, or the number of a plan's own key."""
        pack, number, _ = self.where(place)
        _, envelopes, frames = self.directory(pack)
        return envelopes[frames[number][1]][0]

    # --- logs -----------------------------------------------------------------------------------------------------------------

    def pieces(self, chain=None):
        """(name, stream, start, end) of the pieces of one log, or of all."""
        found = []
        for name in self.names("logs" if chain is None else f"logs/{chain}"):
            stretch = re.fullmatch("logs/[0-9a-f]{32}/pieces/([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})", name)
            if stretch:
                need(stretch[2] < stretch[3], f"{name}: is no name of a piece of a log")
                found.append((name, *(int(part, 16) for part in stretch.groups())))
        return found

    def piece(self, name, start, end):
        """Label and bytes of a piece of a log."""
        data = self.read(name)
        need(72 <= len(data) <= PACK_MAX and end - start <= LOG_PIECE_MAX, f"{name}: has an impossible size")
        sealed_len = int.from_bytes(data[-32:-28], "little")
        split = len(data) - 64 - sealed_len
        need(split >= 8 and sealed_len >= 16, f"{name}: its directory has an impossible size")
        _, wire = self.open_tail(name, data[split:], (LOG,), name.encode())
        label = json.loads(wire.blob())
        envelopes, frames = self.decode_directory(name, wire, split)
        chain = mac16(self.chain_names, f"{label['plan']}/{label['source']}".encode()).hex()
        need(name.startswith(f"logs/{chain}/"), f"{name}: holds another log than its name says")
        need(blake3(data[:split]).hexdigest() == label["sealed"], f"{name}: its bytes are not those that were stored")
        plain = b""
        for frame in frames:
            need(frame[0] != DELTA and len(frame[6]) == 1, f"{name}: impossible frame")
            part = self.open_frame(name, LOG, envelopes, frame, data[frame[3] : frame[3] + frame[4]])
            need(self.is_chunk(envelopes[frame[1]][0], part, frame[6][0][0]), f"{name}: a frame does not hold what it should")
            plain += part
        need(len(plain) == end - start, f"{name}: does not hold as many bytes as its name says")
        need(blake3(plain, key=self.log_content).hexdigest() == label["content"], f"{name}: its content is not what was stored")
        return label, plain

    def beside_log(self, chain):
        """Side files by name, and gaps."""
        sides, gaps = {}, []
        for name in self.names(f"logs/{chain}/history"):
            kind, content = self.open_object(name)
            need(kind == LOG_SIDE, f"{name}: is of another kind than its name says")
            sides[name.rsplit("/", 1)[1]] = content
        for name in self.names(f"logs/{chain}/gaps"):
            kind, content = self.open_object(name)
            gap = json.loads(content)
            stretch = f"{gap['stream']:016x}-{gap['from']:016x}-{gap['to']:016x}"
            need(kind == LOG_GAP and name.endswith(f"/{stretch}"), f"{name}: holds something else than its name says")
            gaps.append(gap)
        return sides, gaps

    # --- trees ----------------------------------------------------------------------------------------------------------------

    def node(self, reference):
        node_id, _, place = reference
        (known, _, base, _), data = self.slot(NODES, place)
        fits = any(mac16(generation.node_ids, data) == node_id for generation in self.generations.values())
        need(known == node_id and base is None and fits, f"{pack_name(place[0][0])}: holds another node")
        return data

    def leaves(self, tree):
        """References of a tree's nodes of records, in order."""
        need(0 <= tree["depth"] <= 8, "a tree is impossibly deep")
        references = decode_list(bytes.fromhex(tree["nodes"]))
        for _ in range(tree["depth"]):
            references = [below for reference in references for below in decode_list(self.node(reference))]
        return references

    def entries(self, source):
        """(entry, parts): `parts` are the chunk lists of a file, each made when it is asked for."""
        last, stretches, counted, total = None, [], 0, 0
        for reference in self.leaves(source["tree"]):
            if reference[1]:
                stretches.append(reference)
                continue
            for entry in decode_entries(self.node(reference)):
                parts = entry["path"].split(b"/") if entry["path"] else []
                need(last is None or parts > last, "a tree's entries are not in order")
                last = parts
                if entry.get("stretches") is not None:
                    need(0 < entry["stretches"] == len(stretches), "a file has another number of stretches than it says")
                    lists = [lambda r=reference: decode_stretch(self.node(r)) for reference in stretches]
                    stretches = []
                else:
                    need(not stretches, "stretches belong to no file")
                    lists = [lambda e=entry: e.get("chunks", [])]
                counted, total = counted + 1, total + entry.get("size", 0)
                yield entry, lists
        need(not stretches, "a tree ends within a file")
        need((counted, total) == (source["entries"], source["bytes"]), "a tree has other counts than its manifest")

    def chunk(self, length, run):
        """The bytes of a chunk; `None` for zeros."""
        if run is None:
            return None
        chunk_id, place, base_place = run
        (known, known_length, base, _), data = self.slot(DATA, place)
        where = pack_name(place[0][0])
        need(known == chunk_id and known_length == length, f"{where}: holds another chunk than a tree says")
        need((base is None) == (base_place is None), f"{where}: a patch is taken for a chunk, or the other way round")
        if base_place is not None:
            (base_id, _, base_base, _), base_data = self.slot(DATA, base_place)
            need(base_base is None and base_id == base[0], f"{where}: a patch does not belong to its base")
            need(self.is_chunk(self.envelope(base_place), base_data, base_id), f"{where}: a base does not have its id")
            data = decompress(data, CHUNK_MAX, f"{where}: a patch", dictionary=base_data)
        need(len(data) == length and self.is_chunk(self.envelope(place), data, chunk_id), f"{where}: a chunk does not have its id")
        return data


def pack_name(digest):
    return f"packs/{digest.hex()[:2]}/{digest.hex()}"


def decode_moved(wire):
    """[(source, frames)]; a frame is None or (target, frame, first slot, kept slots or None for all)."""
    targets = []
    for _ in range(wire.count(35)):
        digest, kind = wire.take(32), wire.u8()
        need(kind in (DATA, NODES), f"{wire.what}: names a pack of an unknown kind")
        targets.append((digest, wire.varint(), wire.varint32()))
    sources = []
    for _ in range(wire.count(33)):
        source, frames = wire.take(32), []
        for _ in range(wire.count(1)):
            mode = wire.u8()
            need(mode in (0, 1, 2), f"{wire.what}: unknown fate of a frame")
            if mode == 0:
                frames.append(None)
                continue
            number, frame = wire.varint32(), wire.varint32()
            need(number < len(targets), f"{wire.what}: a frame has gone to a pack that is not named")
            first, kept = 0, None
            if mode == 2:
                first, count = wire.varint32(), wire.varint32()
                bits = wire.take((count + 7) // 8)
                kept = [bool(bits[at // 8] >> (at % 8) & 1) for at in range(count)]
            frames.append((targets[number], frame, first, kept))
        sources.append((source, frames))
    wire.finish()
    return sources


def pack_table(wire, kind):
    need(wire.u8() == kind, f"{wire.what}: is of another type")
    return [(wire.take(32), wire.varint(), wire.varint32()) for _ in range(wire.count(34))]


def place(wire, packs, number=None):
    number = wire.varint32() if number is None else number
    need(number < len(packs), f"{wire.what}: names a pack that is not in its table")
    return packs[number], wire.varint32(), wire.varint32()


def decode_list(data):
    wire = Wire(data, "a list of nodes")
    packs, references = pack_table(wire, 2), []
    for _ in range(wire.count(19)):
        node_id, head = wire.take(16), wire.varint32()
        references.append((node_id, bool(head & 1), place(wire, packs, head >> 1)))
    wire.finish()
    return references


def decode_chunks(wire, packs):
    """[(length, None or (id, place, base place or None))]"""
    count = wire.varint()
    need(count <= 128, "a chunk list is over the limit")
    if not count:
        return []
    mode = wire.u8()
    need(mode in (0, 1), "unknown lengths mode")
    if mode == 0:
        common, last = wire.varint32(), wire.varint32()
        lengths = [common] * (count - 1) + [last]
    else:
        lengths = [wire.varint32() for _ in range(count)]
    need(all(0 < length <= CHUNK_MAX for length in lengths), "a chunk has an impossible size")
    runs = []
    while len(runs) < count:
        head = wire.varint()
        number, kind = head >> 2, head & 3
        need(1 <= number <= count - len(runs) and kind < 3, "an impossible run of chunks")
        if kind == 0:
            runs += [None] * number
            continue
        pack, frame, slot = place(wire, packs)
        base = place(wire, packs) if kind == 2 else None
        for step in range(number):
            moved = base and (base[0], base[1], base[2] + step)
            runs.append((wire.take(16), (pack, frame, slot + step), moved))
    return list(zip(lengths, runs))


def decode_stretch(data):
    wire = Wire(data, "a stretch")
    packs = pack_table(wire, 1)
    need(wire.u8() == 2, "a node is not the stretch that it should be")
    chunks = decode_chunks(wire, packs)
    wire.finish()
    return chunks


def is_valid_path(path):
    return len(path) <= 65535 and b"\0" not in path and not any(part in (b"", b".", b"..") for part in path.split(b"/"))


def decode_entries(data):
    wire = Wire(data, "a node")
    packs = pack_table(wire, 1)
    while wire.left():
        need(wire.u8() == 1, "a stretch stands among entries")
        entry = {"path": wire.blob(), "mode": wire.varint32(), "uid": wire.varint32(), "gid": wire.varint32()}
        need(not entry["path"] or is_valid_path(entry["path"]), "an entry has an invalid path")
        zigzag = wire.varint()
        entry["mtime_ns"] = (zigzag >> 1) ^ -(zigzag & 1)
        wire.blob()  # The stamp is the source's own.
        entry["xattrs"] = [(wire.blob(), wire.blob()) for _ in range(wire.count(2))]
        entry["kind"] = kind = chr(wire.u8())
        if kind == "f":
            entry["size"] = wire.varint()
            page = wire.varint32()
            need(page & (page - 1) == 0 and page <= CHUNK_MAX, "impossible page size")
            form = wire.u8()
            need(form in (0, 1), "unknown form of content")
            if form:
                entry["stretches"] = wire.varint()
            else:
                entry["chunks"] = decode_chunks(wire, packs)
        elif kind in "lh":
            entry["target"] = wire.blob()
            need(kind == "l" or is_valid_path(entry["target"]), "a hard link has an invalid target")
        else:
            need(kind in "dp", "unknown kind of entry")
        yield entry


# --- restoring ----------------------------------------------------------------------------------------------------------------


def parent_of(root, path):
    """A descriptor of the folder that `path` is in, reached without passing through a symbolic link, and the last name. What is missing is made."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    folder = os.open(root, flags)
    parts = path.split(b"/")
    for part in parts[:-1]:
        try:
            try:
                below = os.open(part, flags, dir_fd=folder)
            except FileNotFoundError:
                os.mkdir(part, 0o700, dir_fd=folder)
                below = os.open(part, flags, dir_fd=folder)
        finally:
            os.close(folder)
        folder = below
    return folder, parts[-1]


def write_file(repository, entry, lists, handle):
    written = 0
    for make in lists:
        for length, run in make():
            data = repository.chunk(length, run)
            if data is None:
                os.lseek(handle, length, os.SEEK_CUR)
            else:
                while data:
                    data = data[os.write(handle, data) :]
            written += length
    need(written == entry["size"], "a file's chunks do not add up to its size")
    os.ftruncate(handle, written)


def settle(handle, entry, notes):
    try:
        os.chown(handle, entry["uid"], entry["gid"])
        mode = entry["mode"] & 0o7777
    except PermissionError:
        notes.add("owners were not restored: only root may do that")
        mode = entry["mode"] & 0o1777
    for name, value in entry["xattrs"]:
        try:
            os.setxattr(handle, name, value)
        except OSError:
            notes.add("some extended attributes were not restored")
    os.chmod(handle, mode)
    os.utime(handle, ns=(entry["mtime_ns"], entry["mtime_ns"]))


def restore_source(repository, source, target, notes):
    os.mkdir(target, 0o700)
    files, folders = set(), []
    for entry, lists in repository.entries(source):
        path = entry["path"]
        if not path:
            need(entry["kind"] == "d", "the root of a tree is no folder")
            folders.append(entry)
            continue
        folder, name = parent_of(target, path)
        try:
            if entry["kind"] == "f":
                handle = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
                try:
                    write_file(repository, entry, lists, handle)
                    settle(handle, entry, notes)
                finally:
                    os.close(handle)
                files.add(path)
            elif entry["kind"] == "d":
                os.mkdir(name, 0o700, dir_fd=folder)
                folders.append(entry)
            elif entry["kind"] == "l":
                os.symlink(entry["target"], name, dir_fd=folder)
                os.utime(name, ns=(entry["mtime_ns"], entry["mtime_ns"]), dir_fd=folder, follow_symlinks=False)
                try:
                    os.chown(name, entry["uid"], entry["gid"], dir_fd=folder, follow_symlinks=False)
                except PermissionError:
                    notes.add("owners were not restored: only root may do that")
            elif entry["kind"] == "h":
                need(entry["target"] in files, "a hard link's target is no earlier file")
                other, other_name = parent_of(target, entry["target"])
                try:
                    os.link(other_name, name, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False)
                finally:
                    os.close(other)
            else:
                os.mkfifo(name, entry["mode"] & 0o777, dir_fd=folder)
                os.utime(name, ns=(entry["mtime_ns"], entry["mtime_ns"]), dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)
    for entry in reversed(folders):
        if entry["path"]:
            folder, name = parent_of(target, entry["path"])
        else:
            folder, name = os.open(target, os.O_RDONLY | os.O_DIRECTORY), b"."
        try:
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            settle(handle, entry, notes)
            os.close(handle)
        finally:
            os.close(folder)
    if not stat.S_ISDIR(os.lstat(target).st_mode):
        raise Bad("the target is no folder any more")


def extract_log(repository, log, target):
    chain = mac16(repository.chain_names, log.encode()).hex()
    sides, gaps = repository.beside_log(chain)
    pieces = repository.pieces(chain)
    need(pieces or sides or gaps, f"there is no log of {log}")
    os.makedirs(os.path.join(target, "history"), 0o700)
    for name, stream, start, end in pieces:
        _, plain = repository.piece(name, start, end)
        with open(os.path.join(target, name.rsplit("/", 1)[1]), "xb") as file:
            file.write(plain)
    for name, content in sides.items():
        need(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name), "a side file has an impossible name")
        with open(os.path.join(target, "history", name), "xb") as file:
            file.write(content)
    for gap in gaps:
        print(f"gap: stream {gap['stream']} from {gap['from']:#x} to {gap['to']:#x}: {gap['reason']}")
    print(f"extracted {len(pieces)} pieces and {len(sides)} side files")


def extract_wal(repository, log, target):
    """The log of a PostgreSQL server as its files."""
    chain = mac16(repository.chain_names, log.encode()).hex()
    sides, gaps = repository.beside_log(chain)
    pieces = repository.pieces(chain)
    need(pieces or sides or gaps, f"there is no log of {log}")
    os.mkdir(target, 0o700)
    segments = {}
    for name, stream, start, end in pieces:
        label, plain = repository.piece(name, start, end)
        facts = label["facts"]
        size = facts["segment_bytes"]
        need(facts["timeline"] == stream and size & (size - 1) == 0 and 1 << 20 <= size <= 1 << 30, f"{name}: impossible facts")
        at = start
        while at < end:
            number, to = at // size, min(end, at - at % size + size)
            path = os.path.join(target, f"{stream:08X}{number // ((1 << 32) // size):08X}{number % ((1 << 32) // size):08X}")
            covered = segments.setdefault((path, size), [])
            if not covered:
                with open(path, "xb") as file:
                    file.truncate(size)
            with open(path, "r+b") as file:
                file.seek(at % size)
                file.write(plain[at - start : to - start])
            covered.append((at % size, at % size + to - at))
            at = to
    for (path, size), covered in segments.items():
        reached = 0
        for first, last in sorted(covered):
            reached = max(reached, last) if first <= reached else reached
        if reached < size:
            os.rename(path, path + ".partial")
    for name, content in sides.items():
        need(re.fullmatch(r"[0-9A-F]{8}\.history", name), "a side file is no history of a timeline")
        with open(os.path.join(target, name), "xb") as file:
            file.write(content)
    for gap in gaps:
        print(f"gap: stream {gap['stream']} from {gap['from']:#x} to {gap['to']:#x}: {gap['reason']}")
    print(f"extracted {len(segments)} segments and {len(sides)} side files")


def main(words):
    if len(words) < 2 or len(words) != {"list": 2, "logs": 2, "restore": 4, "log": 4, "wal": 4}.get(words[1]):
        print(__doc__, file=sys.stderr)
        return 2
    passphrase = os.environ.get("LIFEBOAT_PASSPHRASE")
    if not passphrase:
        print("extract: LIFEBOAT_PASSPHRASE is not set", file=sys.stderr)
        return 2
    try:
        repository = Repository(words[0], passphrase)
        if words[1] == "logs":
            for name, stream, start, end in repository.pieces():
                label, _ = repository.piece(name, start, end)
                print(f"{label['plan']}/{label['source']} {stream} {start:#x} {end:#x} {json.dumps(label['facts'], sort_keys=True)}")
            return 0
        if words[1] == "log":
            extract_log(repository, words[2], words[3])
            return 0
        if words[1] == "wal":
            extract_wal(repository, words[2], words[3])
            return 0
        manifests, problems = repository.manifests()
        for problem in problems:
            print(f"damaged: {problem}", file=sys.stderr)
        if words[1] == "list":
            for manifest in manifests:
                sources = ", ".join(f"{s['name']} ({s['kind']}, {s['entries']} entries, {s['bytes']} bytes)" for s in manifest["sources"])
                print(f"{manifest['id']}  {manifest['time']}  {manifest['plan']}: {sources}")
            return 1 if problems else 0
        wanted = [manifest for manifest in manifests if manifest["id"].startswith(words[2].lower())]
        need(len(wanted) == 1, f"{len(wanted)} snapshots begin with {words[2]!r}")
        os.mkdir(words[3], 0o700)
        notes = set()
        for source in wanted[0]["sources"]:
            need(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", source["name"]), "a source has an impossible name")
            restore_source(repository, source, os.path.join(words[3], source["name"]).encode(), notes)
            print(f"restored {source['name']}: {source['entries']} entries, {source['bytes']} bytes")
            for problem in source["finish"].get("problems", []):
                notes.add(f"not in the backup: {problem['object']}: {problem['message']}")
        for note in sorted(notes):
            print(f"note: {note}", file=sys.stderr)
        return 0
    except (Bad, OSError, ValueError, KeyError) as error:
        print(f"extract: {type(error).__name__}: {error}" if not isinstance(error, Bad) else f"extract: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
