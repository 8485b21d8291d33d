"""The core alone: an exported file, made of bytes here, is run by library and command. Started as a program.

Needs numpy, Pillow, jaxtyping, tqdm and ONNX Runtime; nothing of jax, scipy, matplotlib, pycocotools or onnx.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

FORBIDDEN = ("jax", "flax", "scipy", "matplotlib", "pycocotools", "yaml", "msgspec", "onnx", "safetensors")
# What ``toy_artefact.write_toy`` writes for ``toy_model``, compressed; ``python tests/run_core.py --make`` prints it.
TOY = (
    "c-m!E3se(V8cs}rFo<AWABdJXQngvCQ4x70_ojia5~at2#Rm&vl1#{yBok*Q0zT?<kEP<1u0c>hsk<zDJX+UkZOOf~zA9>~_2{nEZ545?o^914"
    "t!Rrolf>3`Cuh#h|NZ~{{>Q!Z|ElQB-dMs+L^5uwjOK~Ra+>qdE<$N#C|<2_Q(jV;&3YDVhY|xrDhuzVytGkaR5Z(@wDCj~FK~>V=8Y<&N<@eu"
    "gtSW?N!bKuF-<D-X_t?9o(RjtK!Gi%J$#5ot#r63fsD$hgCe0Nf`B?QWJE^K<tPvDWqDc~M<~5C=QhfW1B`OX&jccDB}QOlIoeX8jt%|sa;)8F"
    "6UfLsO33rMMCZR&Jl$YbN4nTDM&L=sOLjYv{4-&Mm8}%%Vx;A_WXZ&{aLClEj+T}nS%@o<_yti*HZ)I06)<IPma(f90$Zi+jZ~>r3h5UwH-)Qi"
    "z7~1gI2JyxaO#V$^Y|R~GH#Cl5qz~h7sqvO!_(8BLvh=7>GcLJyxOe6*%5Vk2_u8Ce;ySWI(-~|Ff$Y1+V`Fzt|(XkW=BFG&z=OIOCAee{QDL-"
    "ZsmN~6VVK>?%81Y%>DpWr1gWCRc{$C-Ms<|FSo(fH==P(Zu^ISiKv7*<<~*{!Cd6dSKu?Xt3m0YEF72fdt6_<40juM;z>!TfHA5b&8&L^^d^kK"
    "b2_xpc=liDHG987v*T<1s2>{9-W9p9c0n!}_G%(r+35#k_En*gCI|)}{tBIxY4DyCF9+`T-V79P{1EIMJQm%#xhC+*>nBipZUfAjuRv4h;P&BH"
    "_Zv>Ub_N*t9YIZ<vq9S3w}Jlc{h*}&y{swP0O(&;16wK^P|g_{%&{VnRFr~SiWlNj{#YCsR*T60UIfKGrC5>G1&)pvkY7=$UnA!B#I+t>oX<ny"
    "m5e}7`a=9S<63mNU^8Cr&jdXge?_V8By^?VJbHEa6L9za3CNMZ2;ORo2{f_}L$<RPc70I@FI;>9eqFx-k1y2V<yW`2Cv^(|zI)bCns5)9kKYG_"
    "zPp3I+_D*zxo6=oIte`6(u001SHZoP-T~yd<3RVChhUAR30+;f12hge3fhiMLyavZfwd3o@LSP2=zICj_LB87+<mhHu-OUihhHcVbA2D2>)VQU"
    "_gyfcpDJNYY#$nt)TMt^ofvrIP=268)r7Wn4oA$$R9Kz&D3DXDflK!LQQ90i1`Fl*iXQ>xfP-Liju!sFl6YZP8h*0>1Zc5cM)KANAgZ_=?>#;Y"
    "kDOD9w-gz1;-$^#SmO*R>^To^uHFEtM+ul2Js%&o-3uHXG79%CDu-1w-@$7uS<sS0pbs2n06ez9Z@FyzXg7pCC1X+YX(O2N{W=s~7LELIUZD5y"
    "1OF-B1m_-k5iii3&Z@s%f_42I@EuA(N3B+1*gFKy`@9Q%o=oD24L1x8D7F2|Pi*+3pVr}Px{Y8#Q=NW-?_*R~qlT^jn1&VpQcyDK9+*`B7|ory"
    "66ZxVfs6=<ug@NiqpHsX=kQ&?RP0B6O+5goD3LZrr4m25V0$xb44qwp+bdf1a3TyOe$$~pP}5-OyEp+2qR;7%fBMLvT_k;^qW#krV=mqBffg6M"
    ")QG!2j)gl~6FPb~5gp%MXoiFMEVz=bhMJ^a>^?sXyqmif2O5t7Z_zA#>h7C{PnRA*@oh~|Zq9;P$rkv>=i5MxVk2zFO=$blR>0K`G>#lG8fz1u"
    "b!asYtg6lr<Q<)WZcVDzYd6cqfRv&>)S}EQ<(pv)*6+OoOxxzckEY%TEOGn^PT!RsSZ^}HnuiKwe%?-avtuk;wrL%LMH^B6wSL2WXCda6ufpSu"
    "g+QKn$WWhh7B9K*4eIVjct+Fj;JW)3>^txWaJ{$<-oD-r6HkAJ{@uD7JFfMk(d8|mbbKM6RdW(<HFZJl=wITon&Zc8h&2c~t%iTjk1{M<6d~1H"
    "5g%pxRo6F<kcA&rczqInw1a|YQzg)5rA)RWd*PU;gGoJ{7^;%12NMdl+(ZmeDa2PNzD8>z5$@umGEOv!37N<wBkM>a)O`P6r!*-ES^N<0q>_lX"
    "I~Wgbd7Y|MA5ktP9W3Xj1j}NY;~CaNW@;v<XvoDB$50+Ylt{6AlOiHee7PjrX@M5!gNT%Il-DUi991F7UXHdgVGh#aojOGVZ7z!EEgs4(PJ~QN"
    "5h;<1u$88RT5%c{hgQ0b<*F=<J!m#PMKd);lc6gP(TdZ@M)Q(pDe0t{GN)kiR*F(;x~Q*U?1D2Sr=^NANAt`QT8crO)U;r8N{$$hKyzMJ9Jb;3"
    "tc*)60>xRxfEdapejdSioRmi#Op+%ue}+kdcpK%C*mM(hx~UmcCQnOCPn$A5b($_CeR+`B>l1>3NjXaULI)^qwF_0=Amnhdln|<ii>hLS8^~9("
    "XU+>c5Tms?E2Olge9}^-q^*<`c&5hVbGalp;vUgYsD$AmE?ET!tz_@<xh;!)G{*$X9IT7zNj%c<dGf4}v(dpg9ZWEvr{^kO(J9l?BtWMlC09S+"
    "j%Tg}sSC!=*l16Xg(R2%5B`FQUH"
)


def main() -> None:
    """Detect, draw, save, report; fail where something of an extra is loaded."""
    from dfine_jax.prediction.detector import Detector

    with tempfile.TemporaryDirectory() as folder:
        model, picture = Path(folder) / "toy.onnx", Path(folder) / "picture.png"
        model.write_bytes(zlib.decompress(base64.b85decode(TOY)))
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)).save(picture)
        result = Detector(model, threshold=0.0)(picture)
        assert len(result) > 0
        result.save(Path(folder) / "drawn.jpg")
        loaded = [name for name in FORBIDDEN if name in sys.modules]
        assert not loaded, loaded
        command = [sys.executable, "-m", "dfine_jax", "predict", model, picture, "--threshold", "0"]
        outputs = [
            "--out",
            Path(folder) / "out",
            "--json",
            Path(folder) / "r.json",
            "--labels",
            Path(folder) / "labels",
        ]
        done = subprocess.run(list(map(str, [*command, *outputs])), capture_output=True, text=True, env={**os.environ})
        assert done.returncode == 0, done.stderr
        assert len(json.loads((Path(folder) / "r.json").read_text())) == len(result)
        print(done.stdout, end="")
        print(f"{result}; the core works alone")


def make() -> None:
    """Print TOY."""
    from toy_artefact import toy_model, write_toy

    with tempfile.TemporaryDirectory() as folder:
        content = write_toy(Path(folder) / "toy.onnx", toy_model()[1]).read_bytes()
    text = base64.b85encode(zlib.compress(content, 9)).decode()
    for start in range(0, len(text), 110):
        print(f"    {text[start : start + 110]!r}")


if __name__ == "__main__":
    make() if sys.argv[1:] == ["--make"] else main()
