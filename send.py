import socket,time,sys,collections
s=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM)
n=0;c=collections.Counter();end=time.time()+float(sys.argv[1])
while time.time()<end:
    for _ in range(200):
        try: s.sendto(b'x',('fd00:96::7',80)); n+=1
        except OSError as e: c[e.errno]+=1
print(n,dict(c))
